"""`starved.py FOLDER`: fit, without memory at the moment at which it writes the checkpoint of its second epoch."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch
from train import data

from lossbook.losses import cross_entropy
from lossbook.models import MLP
from lossbook.train import fit


def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    return cross_entropy(logits, target)


def starve(epoch: int, model: torch.nn.Module) -> None:
    if epoch == 2:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**20, -1))


folder = Path(sys.argv[1])
torch.set_num_threads(1)
for name, callback in [("whole", None), ("starved", starve)]:
    torch.manual_seed(0)
    model = MLP(6, (2000, 500), 3)
    fit(
        model,
        data(),
        loss,
        epochs=3,
        batch_size=None,
        device="cpu",
        callback=callback,
        checkpoint=folder / f"{name}.pt",
    )
    torch.save(model.state_dict(), folder / f"{name}-result.pt")
