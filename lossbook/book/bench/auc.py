"""The Mann-Whitney loss against its formula written out, and at a size where that does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from lossbook.book.bench.measure import Measurement, compare, one_thread

if TYPE_CHECKING:
    import torch

# Scores of each class: where all pairs fit, and where they do not.
FEW, MANY = 6_000, 50_000


def mann_whitney(repeats: int, device: torch.device) -> Iterator[Measurement]:
    """Value and gradient: 2 × 6,000 scores against all 36 million pairs in torch; 2 × 50,000 against an exact AUC.

    On one thread; scikit-learn's AUC is computed on the CPU. Promised: at least five times as fast as the pairs, 2.5
    billion pairs in the time of at most five AUCs, and an AUC at least as fast as scikit-learn's.
    """
    with one_thread():
        rows = list(_rows(repeats, device))
    yield from rows


def _rows(repeats: int, device: torch.device) -> Iterator[Measurement]:
    import torch
    from sklearn.metrics import roc_auc_score
    from torch import Tensor
    from torch.nn.functional import softplus

    from lossbook.losses import mann_whitney as loss
    from lossbook.metrics import pooled_auc

    generator = torch.Generator().manual_seed(0)

    def scores(n: int) -> tuple[Tensor, Tensor]:
        pos, neg = torch.randn(2, n, generator=generator).to(device)
        return (pos + 1).requires_grad_(True), neg.requires_grad_(True)

    pos, neg = scores(FEW)

    def ours() -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(pos, neg), (pos, neg))

    def written_out() -> tuple[Tensor, ...]:
        return torch.autograd.grad(softplus(neg[None, :] - pos[:, None]).mean(), (pos, neg))

    name = f"MW loss of 2 × {FEW:,}, with gradient"
    yield compare(name, "all pairs in torch", ours, written_out, repeats, device=device, at_least=5.0, memory=True)

    many_pos, many_neg = scores(MANY)
    pool, labels = torch.cat((many_pos, many_neg)).detach(), torch.arange(2 * MANY, device=device) < MANY
    array, array_labels = pool.cpu().numpy(), labels.cpu().numpy()
    library = "scikit-learn" if device.type == "cpu" else "scikit-learn, on the CPU"

    def many() -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(many_pos, many_neg), (many_pos, many_neg))

    def area() -> float:
        return float(roc_auc_score(array_labels, array))

    name = f"MW loss of 2 × {MANY:,}, with gradient"
    row = compare(name, f"AUC alone, {library}", many, area, repeats, device=device, at_least=0.2, memory=True)
    yield replace(row, note=f"the pairs alone would take {4 * MANY**2 / 2**20:,.0f} MiB")
    name = f"AUC of {2 * MANY:,} scores"
    yield compare(name, library, lambda: pooled_auc(pool, labels), area, repeats, device=device, at_least=1.0)
