"""Value and gradient of contrastive losses: in units of a product of matrices, and written out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lossbook.book.bench.measure import Measurement, Work, compare, one_thread

if TYPE_CHECKING:
    import torch

WIDTH = 128
# Views of NT-Xent where no similarity matrix fits, and rows of the matrix of all losses.
MANY, FEW = 16_384, 4_096


def similarity_matrices(repeats: int, device: torch.device) -> Iterator[Measurement]:
    """NT-Xent over 16,384 views and all losses over 4,096 × 4,096 similarities, in units of a product of matrices.

    On one thread. The product is that of the N × 128 embeddings with their transpose; `losses` compares with a library.
    Promised: NT-Xent of 16,384 views costs less than six products, and of 4,096 no more than written out in torch.
    """
    with one_thread():
        rows = list(_rows(repeats, device))
    yield from rows


def _rows(repeats: int, device: torch.device) -> Iterator[Measurement]:
    import torch
    from torch import Tensor
    from torch.nn.functional import cross_entropy, normalize

    from lossbook.losses import contrastive
    from lossbook.losses.contrastive import nt_xent, supcon

    generator = torch.Generator().manual_seed(0)

    def views(count: int) -> tuple[Tensor, Tensor]:
        first, second = normalize(torch.randn(2, count // 2, WIDTH, generator=generator).to(device), dim=2)
        return first.requires_grad_(), second.requires_grad_()

    def slope(loss: Callable[[Tensor, Tensor], Tensor], z: tuple[Tensor, Tensor]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(loss(*z), z)

    def product(z: tuple[Tensor, Tensor]) -> Callable[[], Tensor]:
        rows = torch.cat(z).detach()
        return lambda: rows @ rows.T

    def written_out(z1: Tensor, z2: Tensor) -> Tensor:
        z = normalize(torch.cat((z1, z2)), dim=1)
        s = (z @ z.T / 0.5).masked_fill(torch.eye(len(z), dtype=torch.bool, device=device), -torch.inf)
        return cross_entropy(s, torch.arange(len(z), device=device).roll(len(z1)))

    def work(z: tuple[Tensor, Tensor]) -> Work:
        # Half a symmetric product for the value, a whole one for the gradient; a product is 2 N² D operations.
        return Work(flops=1.5 * 2 * (2 * len(z[0])) ** 2 * WIDTH)

    many = views(MANY)
    floor = f"one product N×N×{WIDTH}"
    name = f"NT-Xent of {MANY:,} views, with gradient"
    row = compare(
        name,
        floor,
        slope(nt_xent, many),
        product(many),
        repeats,
        device=device,
        at_least=1 / 6,
        memory=True,
        work=work(many),
    )
    yield replace(row, note=f"{1 / row.ratio:.1f} products")

    few = views(FEW)
    yield compare(
        f"NT-Xent of {FEW:,} views, with gradient",
        "written out in torch",
        slope(nt_xent, few),
        slope(written_out, few),
        repeats,
        device=device,
        at_least=1.0,
        memory=True,
        work=work(few),
    )

    # N is the number of rows of the similarity matrix: some losses have both views among them, others one.
    index = torch.arange(FEW // 2, device=device)
    label = index // 16
    individual = contrastive.IndividualTemperatureLoss(FEW // 2).to(device)
    pair = views(2 * FEW)
    others: list[tuple[str, Callable[[Tensor, Tensor], Tensor], tuple[Tensor, Tensor]]] = [
        ("SupCon", lambda z1, z2: supcon(torch.stack((z1, z2)), label), few),
        ("decoupled", contrastive.decoupled_contrastive_loss, few),
        ("iSogCLR", lambda z1, z2: individual(z1, z2, index), few),
        ("CWCL", contrastive.cwcl_loss, pair),
        ("CACR", lambda z1, z2: contrastive.cacr_loss(torch.stack((z1, z2))), pair),
        ("GroCo", lambda z1, z2: contrastive.groco_loss(torch.stack((z1, z2))), pair),
    ]
    for name, loss, z in others:
        name = f"{name}, {FEW:,} × {FEW:,} similarities, with gradient"
        row = compare(name, floor, slope(loss, z), product(few), repeats, device=device, memory=True)
        yield replace(row, note=f"{1 / row.ratio:.1f} products")
