"""The Mann-Whitney loss against its formula written out, and at a size where that does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from lossbook.book.bench.measure import Measurement, compare, one_thread, peak_mib


def mann_whitney(repeats: int) -> Iterator[Measurement]:
    """Value and gradient: 2 x 6,000 scores against all 36 million pairs in torch; 2 x 50,000 against an exact AUC.

    On one thread.
    """
    with one_thread():
        rows = list(_rows(repeats))
    yield from rows


def _rows(repeats: int) -> Iterator[Measurement]:
    import torch
    from sklearn.metrics import roc_auc_score
    from torch import Tensor
    from torch.nn.functional import softplus

    from lossbook.losses import mann_whitney as loss
    from lossbook.metrics import pooled_auc

    generator = torch.Generator().manual_seed(0)

    def scores(n: int) -> tuple[Tensor, Tensor]:
        pos, neg = torch.randn(2, n, generator=generator)
        return (pos + 1).requires_grad_(True), neg.requires_grad_(True)

    pos, neg = scores(6_000)

    def ours() -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(pos, neg), (pos, neg))

    def written_out() -> tuple[Tensor, ...]:
        return torch.autograd.grad(softplus(neg[None, :] - pos[:, None]).mean(), (pos, neg))

    row = compare("MW loss of 2 × 6,000, with gradient", "all pairs in torch", ours, written_out, repeats)
    small, large = peak_mib(ours), peak_mib(written_out)
    if small is not None and large is not None:
        row = replace(row, note=f"extra memory {max(small, 0):.0f} MiB against {large:.0f} MiB")
    yield row

    many_pos, many_neg = scores(50_000)
    pool, labels = torch.cat((many_pos, many_neg)).detach(), torch.arange(100_000) < 50_000

    def many() -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(many_pos, many_neg), (many_pos, many_neg))

    row = compare(
        "MW loss of 2 × 50,000, with gradient", "AUC alone, scikit-learn", many,
        lambda: roc_auc_score(labels.numpy(), pool.numpy()), repeats,
    )  # fmt: skip
    if (extra := peak_mib(many)) is not None:
        row = replace(row, note=f"extra memory {max(extra, 0):.0f} MiB; the pairs alone would take 9,537 MiB")
    yield row
    yield compare(
        "AUC of 100,000 scores", "scikit-learn", lambda: pooled_auc(pool, labels),
        lambda: roc_auc_score(labels.numpy(), pool.numpy()), repeats,
    )  # fmt: skip
