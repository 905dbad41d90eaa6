"""Pair and mutual_loss: what is trained by what, deep mutual learning by hand, sweep, a frozen teacher, bad input."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from lossbook.losses import balanced_divergence, cross_entropy, forward_kl, reverse_kl
from lossbook.models import MLP
from lossbook.train import Pair, fit, mutual_loss, sweep


def pair(seed: int = 0) -> Pair:
    torch.manual_seed(seed)
    return Pair(MLP(6, (4,), 3), MLP(6, (8, 8), 3)).double()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(10, 6, generator=generator, dtype=torch.float64), torch.arange(10) % 3


def gradients(loss: torch.Tensor, module: nn.Module) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(module.parameters()), retain_graph=True))


def test_the_pair_shows_the_student_and_keeps_both() -> None:
    model, (x, _) = pair(), batch()
    assert torch.equal(model(x), model.student(x))
    assert torch.equal(model.features(x), torch.cat((model.student(x), model.teacher(x)), 1))
    assert torch.equal(model.head(model.features(x)), model(x))


def test_each_network_descends_its_own_loss_alone() -> None:
    model, (x, y) = pair(), batch()
    student, teacher = partial(balanced_divergence, nu=3.0, temperature=2.0), partial(reverse_kl, temperature=2.0)
    together = mutual_loss(model(x), y, features=model.features(x), student=student, teacher=teacher)
    s, t = model.student(x), model.teacher(x)
    own = cross_entropy(s, y) + student(s, t.detach())
    others = cross_entropy(t, y) + teacher(t, s.detach())
    torch.testing.assert_close(together, own + others)
    torch.testing.assert_close(gradients(together, model.student), gradients(own, model.student))
    torch.testing.assert_close(gradients(together, model.teacher), gradients(others, model.teacher))


def test_a_divergence_that_forgets_to_detach_still_reaches_one_network_only() -> None:
    model, (x, y) = pair(), batch()

    def squared(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (own - other).square().mean()

    loss = mutual_loss(model(x), y, features=model.features(x), student=squared)
    torch.testing.assert_close(
        gradients(loss, model.teacher), gradients(cross_entropy(model.teacher(x), y), model.teacher)
    )


def test_without_divergences_the_student_is_the_one_trained_alone(blobs) -> None:
    settings = {"epochs": 3, "batch_size": 32, "lr": 0.01, "seed": 5, "device": "cpu"}
    model = pair().float()
    alone = MLP(6, (4,), 3)
    alone.load_state_dict(model.student.state_dict())
    fit(model, blobs, mutual_loss, **settings)
    fit(alone, blobs, cross_entropy, **settings)
    for found, want in zip(model.student.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(found, want)


def test_mutual_learning_brings_the_two_together_and_a_frozen_teacher_stays(blobs) -> None:
    def gap(loss, frozen: bool = False) -> tuple[float, bool]:
        model = pair().float()
        model.teacher.requires_grad_(not frozen)
        before = [p.clone() for p in model.teacher.parameters()]
        fit(model, blobs, loss, epochs=8, batch_size=32, lr=0.01, device="cpu")
        with torch.no_grad():
            student, teacher = model.features(blobs.val[0]).chunk(2, 1)
        moved = not all(torch.equal(a, b) for a, b in zip(before, model.teacher.parameters(), strict=True))
        return forward_kl(student, teacher).item(), moved

    both = partial(
        mutual_loss, student=partial(forward_kl, temperature=4.0), teacher=partial(forward_kl, temperature=4.0)
    )
    assert gap(both)[0] < 0.7 * gap(mutual_loss)[0]
    assert gap(both)[1] and not gap(both, frozen=True)[1]


def test_sweep_stacks_pairs_and_shows_both_networks(blobs) -> None:
    grid = [
        {"seed": s, "student": partial(balanced_divergence, nu=nu), "teacher": reverse_kl}
        for nu in (1.0, 2.0)
        for s in (0, 1)
    ]

    def make() -> Pair:
        return Pair(MLP(6, (4,), 3), MLP(6, (8,), 3))

    settings = {"loss": mutual_loss, "epochs": 2, "batch_size": 32, "device": "cpu"}
    stacked, looped = (sweep(make, blobs, grid, method=method, **settings) for method in ("vmap", "loop"))
    x = blobs.val[0]
    assert stacked.method == "vmap" and stacked.features(x).shape == (4, 60, 6)
    torch.testing.assert_close(stacked.logits(x), stacked.features(x)[..., :3])
    torch.testing.assert_close(stacked.features(x), looped.features(x), rtol=1e-3, atol=1e-4)


def test_unequal_classes_are_refused() -> None:
    model = Pair(MLP(6, (4,), 3), MLP(6, (4,), 4))
    with pytest.raises(ValueError, match=r"logits of one shape, but have \(2, 3\) and \(2, 4\)"):
        model(torch.zeros(2, 6))
