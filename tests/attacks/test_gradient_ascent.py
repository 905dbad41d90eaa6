"""Attacks: closed forms for linear scores, the ball and the bounds, reproducibility, bad input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lossbook.attacks import max_score_shift, pgd
from lossbook.losses import cross_entropy
from lossbook.models import MLP


def linear(c: int = 4, d: int = 6, seed: int = 0) -> nn.Linear:
    model = nn.Linear(d, c).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.weight.copy_(torch.randn(c, d, generator=generator))
        model.bias.copy_(torch.randn(c, generator=generator))
    return model


def examples(n: int = 8, c: int = 4, d: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, d, dtype=torch.float64, generator=generator), torch.randint(c, (n,), generator=generator)


def shift_of(model, x, moved, target):
    """|D(moved) - D(x)| over k != y, written out."""
    out = []
    for before, after, y in zip(model(x), model(moved), target.tolist(), strict=True):
        others = [k for k in range(len(before)) if k != y]
        out.append(((after[y] - after[others]) - (before[y] - before[others])).norm())
    return torch.stack(out)


def test_linear_scores_in_an_l2_ball_reach_the_largest_singular_value(generator) -> None:
    model, (x, y) = linear(), examples()
    moved = max_score_shift(model, x, y, eps=0.3, norm="l2", steps=200, generator=generator)
    weight = model.weight.detach()
    exact = [0.3 * torch.linalg.matrix_norm(weight[k] - weight[[j for j in range(4) if j != k]], ord=2) for k in y]
    torch.testing.assert_close(shift_of(model, x, moved, y), torch.stack(exact), rtol=1e-3, atol=0)


def test_two_classes_in_a_linf_ball_reach_the_one_norm(generator) -> None:
    model, (x, y) = linear(c=2), examples(c=2)
    moved = max_score_shift(model, x, y, eps=0.3, steps=10, generator=generator)
    exact = 0.3 * (model.weight[0] - model.weight[1]).abs().sum()
    torch.testing.assert_close(shift_of(model, x, moved, y), exact.expand(8))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_finds_the_worst_input_of_a_two_class_linear_model(generator, norm) -> None:
    model, (x, y) = linear(c=2), examples(c=2)
    w = (model.weight[1] - model.weight[0]).detach()
    worst = w.sign() if norm == "linf" else w / w.norm()
    expected = x + 0.2 * torch.where(y == 0, 1.0, -1.0)[:, None] * worst
    moved = pgd(model, x, y, eps=0.2, norm=norm, steps=20, step_size=0.2, generator=generator)
    torch.testing.assert_close(moved, expected, atol=1e-3, rtol=0)


@settings(max_examples=25, deadline=None)
@given(
    eps=st.floats(0, 2),
    norm=st.sampled_from(["linf", "l2"]),
    bounded=st.booleans(),
    steps=st.integers(1, 4),
    attack=st.sampled_from([pgd, max_score_shift]),
)
def test_stays_in_the_ball_and_in_the_bounds(eps, norm, bounded, steps, attack) -> None:
    model, (x, y) = linear(), examples()
    moved = attack(
        model, x, y, eps=eps, norm=norm, steps=steps, bounds=(0, 1) if bounded else None, step_size=1.0,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    delta = moved - x
    length = delta.abs().amax(dim=1) if norm == "linf" else delta.norm(dim=1)
    assert (length <= eps + 1e-12).all()
    assert not bounded or ((moved >= 0) & (moved <= 1)).all()
    if not bounded and eps > 0.1:
        assert (length > 0.5 * eps).all(), "the ascent stays near its start"


@pytest.mark.parametrize("attack", [pgd, max_score_shift])
@pytest.mark.parametrize("shape", [(3, 6), (3, 1, 2, 3)])
def test_leaves_the_model_alone_and_repeats(attack, shape) -> None:
    model = MLP(6, (8,), 4)
    model(torch.ones(1, 6)).sum().backward()
    before = [p.grad.clone() for p in model.parameters()]
    x, y = torch.rand(shape, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 3])
    runs = [attack(model, x, y, eps=0.1, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*runs)
    assert runs[0].shape == x.shape and runs[0].dtype == x.dtype and not runs[0].requires_grad
    assert model.training and all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))
    with torch.no_grad():  # the search needs gradients, whatever the caller's mode
        assert torch.equal(attack(model, x, y, eps=0.1, generator=torch.Generator().manual_seed(5)), runs[0])


def test_more_steps_hurt_more_and_the_loss_is_the_callers() -> None:
    model = MLP(6, (16,), 4).double()
    x, y = examples(n=32)
    clean = cross_entropy(model(x), y)
    hurt = [
        cross_entropy(model(pgd(model, x, y, eps=0.3, steps=s, generator=torch.Generator().manual_seed(0))), y)
        for s in (1, 10)
    ]
    assert clean < hurt[0] < hurt[1]
    kind = pgd(model, x, y, loss=lambda f, t: -cross_entropy(f, t), eps=0.3, generator=torch.Generator().manual_seed(0))
    assert cross_entropy(model(kind), y) < clean


def test_radius_zero_changes_nothing() -> None:
    model, (x, y) = linear(), examples()
    for norm in ("linf", "l2"):
        for attack in (pgd, max_score_shift):
            assert torch.equal(attack(model, x, y, eps=0.0, norm=norm), x)


@pytest.mark.parametrize("attack", [pgd, max_score_shift])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"eps": -0.1}, "eps must lie in"),
        ({"eps": None}, "eps must be a number"),
        ({"norm": "l1"}, "norm must be 'linf' or 'l2', but is 'l1'"),
        ({"steps": 0}, "steps must be a whole number of at least 1"),
        ({"step_size": 0.0}, "step_size must lie in"),
        ({"bounds": (1, 0)}, r"bounds must be \(low, high\)"),
        ({"bounds": (0.0, 0.1)}, "x must keep to bounds"),
        ({"x": torch.ones(8, 6).long()}, "x must hold examples"),
        ({"x": torch.full((8, 6), float("nan")).double()}, r"x\[0, 0\] is nan"),
        ({"target": torch.full((8,), 4)}, "target has label 4, but logits have 4 classes"),
        ({"target": torch.zeros(7).long()}, r"target must have shape \(8,\)"),
        ({"model": lambda x: x.sum()}, r"logits must have shape \(N, C\)"),
    ],
)
def test_bad_input_is_refused_by_name(attack, change, sentence) -> None:
    x, y = examples()
    arguments = {"model": linear(), "x": x, "target": y, "eps": 0.1, **change}
    with pytest.raises(ValueError, match=sentence):
        attack(arguments.pop("model"), arguments.pop("x"), arguments.pop("target"), **arguments)


def test_wrong_types_are_refused() -> None:
    x, y = examples()
    with pytest.raises(TypeError, match="model must be callable"):
        pgd("model", x, y, eps=0.1)
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor"):
        pgd(linear(), x.tolist(), y, eps=0.1)


@pytest.mark.parametrize("attack", [pgd, max_score_shift])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_of_any_integer_dtype(attack, dtype) -> None:
    model, (x, y) = linear(), examples()
    one, two = (attack(model, x, t, eps=0.1, generator=torch.Generator().manual_seed(0)) for t in (y, y.to(dtype)))
    assert torch.equal(one, two)
