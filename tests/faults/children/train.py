"""What the fault tests kill: `train.py fit|sweep FOLDER SIZE [KEPT]`, with a checkpoint in KEPT, or in FOLDER.

SIZE is the number of fit's epochs, or of the configurations, and files, of sweep.
It notes in FOLDER/reported each epoch of fit when it has ended, and leaves in FOLDER/result.pt what it ends with.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from lossbook.models import MLP
from lossbook.train import fit, sweep


def data() -> SimpleNamespace:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 6, generator=generator), torch.arange(200) % 3
    return SimpleNamespace(train=(x, y), val=(x[:50], y[:50]))


def train_one(folder: Path, epochs: int, kept: Path) -> dict:
    torch.manual_seed(0)
    model = nn.Sequential(MLP(6, (16,), 3), nn.Dropout(0.2))
    reported = os.open(folder / "reported", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(epoch: int, _: nn.Module) -> None:
        os.write(reported, f"{epoch}\n".encode())

    history = fit(
        model, data(), nn.functional.cross_entropy, epochs=epochs, batch_size=50, schedule="cosine", device="cpu",
        checkpoint=kept / "run.pt", callback=note,
    )  # fmt: skip
    return {"state": model.state_dict(), "table": history.drop(columns="seconds").to_dict("list")}


def train_many(folder: Path, configurations: int, kept: Path) -> dict:
    result = sweep(
        lambda: MLP(6, (16,), 3), data(), {"seed": list(range(configurations))}, epochs=2, batch_size=100,
        device="cpu", chunk=1, method="vmap", keep=[1], checkpoint=kept / "parts",
    )  # fmt: skip
    state = {f"{i}.{name}": value for i in range(len(result)) for name, value in result.weights(i).items()}
    return {"state": state, "table": {**result.table.to_dict("list"), **result.history.to_dict("list")}}


if __name__ == "__main__":
    torch.set_num_threads(1)
    kind, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    result = (train_one if kind == "fit" else train_many)(
        folder, int(sys.argv[3]), Path(sys.argv[-1]) if len(sys.argv) > 4 else folder
    )
    # Where such a limit stood in for a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    torch.save(result, folder / "result.part")
    os.rename(folder / "result.part", folder / "result.pt")
