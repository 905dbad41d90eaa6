"""The Mann-Whitney loss: against explicit pairs on hostile scores, bound, peers, derivatives, memory, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap

from lossbook import losses
from lossbook.losses import info_nce, mann_whitney, mann_whitney_in_batch, retrieval
from lossbook.losses._pair_sums import softplus_sums
from lossbook.metrics import pooled_auc

LOG2 = math.log(2)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def explicit(a: Tensor, b: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The same sums over the written-out pairs; softplus itself, because torch's drops the exponential beyond 20."""
    u = (b[None, :] - a[:, None]) / temperature
    pull = u.sigmoid()
    return (u.clamp(min=0) + torch.log1p(torch.exp(-u.abs()))).sum(), pull.sum(dim=1), pull.sum(dim=0)


def assert_same_sums(a: Tensor, b: Tensor, temperature: float) -> None:
    for found, expected in zip(softplus_sums(a, b, temperature), explicit(a, b, temperature), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-290)


HOSTILE = {
    "normal": (normal(300, seed=1), normal(400, seed=2), 1.0),
    "cold": (normal(300, seed=1), normal(400, seed=2), 1e-2),
    "frozen": (normal(300, seed=1), normal(400, seed=2), 1e-9),
    "hot": (normal(300, seed=1), normal(400, seed=2), 1e6),
    "one of each": (normal(1, seed=1), normal(1, seed=2), 0.3),
    "all equal": (torch.full((50,), 0.3).double(), torch.full((70,), 0.3).double(), 0.7),
    "ties on a grid": (normal(300, seed=1).mul(9).round(), normal(400, seed=2).mul(9).round(), 1.7),
    "box edges": (torch.arange(-40.0, 40).double(), torch.arange(-30.0, 50).double() / 2, 1.0),
    "±1e6, T 1e-3": (1e6 * normal(300, seed=1), 1e6 * normal(400, seed=2), 1e-3),
    "±1e30": (1e30 * normal(300, seed=1), 1e30 * normal(400, seed=2), 1.0),
    "offset 1e6": (1e6 + normal(300, seed=1), 1e6 + normal(400, seed=2), 0.5),
    "separated": (50 + normal(300, seed=1), normal(400, seed=2), 1.0),
    "separated far": (300 + normal(300, seed=1), normal(400, seed=2), 1.0),
    "separated the wrong way": (normal(300, seed=1), 50 + normal(400, seed=2), 1.0),
    "heavy tails": (normal(300, seed=1) / normal(300, seed=3), normal(400, seed=2) / normal(400, seed=4), 0.01),
    "two clusters": (
        torch.cat((normal(99, seed=1), 1e6 + normal(99, seed=3))),
        torch.cat((normal(99, seed=2), 1e6 + normal(99, seed=4))),
        0.3,
    ),
    "beyond whole numbers": (2.0**54 + 16 * normal(99, seed=1).round(), 2.0**54 + 16 * normal(99, seed=2).round(), 1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_fast_sums_equal_the_pairs(name: str) -> None:
    a, b, temperature = HOSTILE[name]
    assert_same_sums(a, b, temperature)
    assert_same_sums(-a, -b, temperature)


@settings(max_examples=60, deadline=None)
@given(
    a=st.lists(st.floats(-1e6, 1e6) | st.floats(-5, 5) | st.integers(-3, 3).map(float), min_size=1, max_size=30),
    b=st.lists(st.floats(-1e6, 1e6) | st.floats(-5, 5) | st.integers(-3, 3).map(float), min_size=1, max_size=30),
    temperature=st.floats(1e-3, 1e3),
)
def test_fast_sums_equal_the_pairs_anywhere(a: list[float], b: list[float], temperature: float) -> None:
    assert_same_sums(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64), temperature)


@pytest.fixture
def only_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "_FEW_PAIRS", 0)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_both_paths_agree(monkeypatch: pytest.MonkeyPatch, reduction: str, dtype: torch.dtype) -> None:
    def value_and_slopes(few: int) -> list[Tensor]:
        monkeypatch.setattr(retrieval, "_FEW_PAIRS", few)
        inputs = [normal(40, seed=1).to(dtype), normal(50, seed=2).to(dtype), torch.tensor(0.7, dtype=torch.float64)]
        inputs = [part.requires_grad_(True) for part in inputs]
        value = mann_whitney(inputs[0], inputs[1], temperature=inputs[2], reduction=reduction)
        return [value, *torch.autograd.grad(value, inputs)]

    for written_out, fast in zip(value_and_slopes(10**9), value_and_slopes(0), strict=True):
        assert fast.dtype == written_out.dtype
        eps = 16 * torch.finfo(dtype).eps
        torch.testing.assert_close(fast, written_out, rtol=eps, atol=eps * float(written_out.detach().abs().max()))


@pytest.mark.parametrize("few", [0, 10**9])
def test_gradcheck(monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    monkeypatch.setattr(retrieval, "_FEW_PAIRS", few)
    inputs = (normal(5, seed=1), normal(6, seed=2), torch.tensor(0.6, dtype=torch.float64))
    assert torch.autograd.gradcheck(
        lambda a, b, t: mann_whitney(a, b, temperature=t), [part.requires_grad_(True) for part in inputs]
    )


@pytest.mark.parametrize("few", [0, 10**9])
def test_vmap_over_models_and_temperature(monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    monkeypatch.setattr(retrieval, "_FEW_PAIRS", few)
    pos, neg, at = normal(3, 5), normal(6), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)

    def slope(p: Tensor, t: Tensor) -> Tensor:
        return grad(lambda scores: mann_whitney(scores, neg, temperature=t))(p)

    want = torch.stack([slope(p, t) for p, t in zip(pos, at, strict=True)])
    torch.testing.assert_close(vmap(slope)(pos, at), want)


@pytest.mark.usefixtures("only_fast")
def test_a_second_derivative_is_refused_not_zero() -> None:
    pos, neg = normal(5).requires_grad_(True), normal(6, seed=1)
    (slope,) = torch.autograd.grad(mann_whitney(pos, neg), pos, create_graph=True)
    with pytest.raises(NotImplementedError, match="has first derivatives only"):
        torch.autograd.grad(slope.sum(), pos)
    with pytest.raises(NotImplementedError, match="has first derivatives only"):
        grad(lambda p: grad(mann_whitney)(p, neg).square().sum())(pos.detach())


@settings(max_examples=60, deadline=None)
@given(
    pos=st.lists(st.integers(-4, 4), min_size=1, max_size=12),
    neg=st.lists(st.integers(-4, 4), min_size=1, max_size=12),
    temperature=st.sampled_from([0.01, 0.3, 1.0, 30.0]),
)
def test_bounds_the_area_over_the_curve(pos: list[int], neg: list[int], temperature: float) -> None:
    """1 - AUC <= loss / log 2, ties included; without the log 2 equal scores would break it."""
    auc = pooled_auc(pos + neg, [1] * len(pos) + [0] * len(neg))
    loss = mann_whitney(torch.tensor(pos).double(), torch.tensor(neg).double(), temperature=temperature).item()
    assert 1 - auc <= loss / LOG2 + 1e-12


def test_equal_scores_and_the_cold_limit() -> None:
    same = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(mann_whitney(same, same[:2]), torch.tensor(LOG2, dtype=torch.float64))
    pos, neg = normal(20, seed=1), normal(30, seed=2)
    hinge = (neg[None, :] - pos[:, None]).clamp(min=0).mean()
    torch.testing.assert_close(1e-6 * mann_whitney(pos, neg, temperature=1e-6), hinge, rtol=1e-4, atol=0)


def test_one_query_is_the_logistic_loss_of_differences() -> None:
    pos, neg = normal(1, seed=1), normal(8, seed=2)
    expected = losses.logistic((pos - neg) / 0.4, torch.ones(8))
    torch.testing.assert_close(mann_whitney(pos, neg, temperature=0.4), expected)


def test_in_batch_takes_all_queries_negatives() -> None:
    sim, extra = normal(5, 5), normal(5, 3, seed=1)
    negatives = sim[~torch.eye(5, dtype=torch.bool)]
    torch.testing.assert_close(mann_whitney_in_batch(sim), mann_whitney(sim.diagonal(), negatives))
    torch.testing.assert_close(
        mann_whitney_in_batch(sim, temperature=0.2, extra_neg=extra, reduction="sum"),
        mann_whitney(sim.diagonal(), torch.cat((negatives, extra.flatten())), temperature=0.2, reduction="sum"),
    )
    torch.testing.assert_close(
        mann_whitney_in_batch(sim[:1, :1], extra_neg=extra), mann_whitney(sim[0, :1], extra.flatten())
    )
    assert torch.autograd.gradcheck(mann_whitney_in_batch, sim.requires_grad_(True))


def test_sees_the_offset_that_info_nce_cannot() -> None:
    sim = normal(12, 12) + 3 * torch.eye(12)
    offset = 5 * normal(12, 1, seed=1)
    torch.testing.assert_close(info_nce(sim + offset), info_nce(sim))
    assert mann_whitney_in_batch(sim + offset) > mann_whitney_in_batch(sim) + 0.1


def test_a_hundred_thousand_scores_without_their_pairs() -> None:
    """2.5 billion pairs: their matrix would take 20 GB. Equal halves make the answer known."""
    pos, neg = torch.zeros(50_000, requires_grad=True), torch.cat((torch.full((25_000,), -1.0), torch.ones(25_000)))
    value = mann_whitney(pos, neg)
    expected = (math.log1p(math.exp(-1)) + math.log1p(math.exp(1))) / 2
    assert value.item() == pytest.approx(expected, rel=1e-6)
    (slope,) = torch.autograd.grad(value, pos)
    torch.testing.assert_close(slope, torch.full((50_000,), -0.5 / 50_000))


SCORES = torch.zeros(3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pos_scores": torch.zeros(0)}, r"pos_scores must have shape \(N,\) with N >= 1, but have shape \(0,\)"),
        ({"neg_scores": torch.zeros(0)}, r"neg_scores must have shape \(N,\)"),
        ({"neg_scores": torch.zeros(2, 2)}, r"neg_scores must have shape \(N,\)"),
        ({"pos_scores": torch.zeros(3, dtype=torch.long)}, "pos_scores must be floating point"),
        ({"neg_scores": torch.zeros(3, dtype=torch.float64)}, "neg_scores must be like pos_scores, torch.float32"),
        ({"neg_scores": torch.tensor([0.0, float("inf")])}, r"neg_scores\[1\] is inf"),
        ({"temperature": 0.0}, r"temperature must lie in \(0, inf\)"),
        ({"temperature": torch.ones(2)}, "temperature must be a number or a 0-d tensor"),
        ({"reduction": "none"}, "reduction must be 'mean' or 'sum' over the pairs, but is 'none'"),
    ],
)
def test_bad_input_is_refused_by_name(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        mann_whitney(**{"pos_scores": SCORES, "neg_scores": SCORES, **change})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sim": torch.zeros(1, 1)}, "there are no negatives"),
        ({"sim": torch.zeros(2, 3)}, r"sim must have shape \(B, B\)"),
        ({"extra_neg": torch.zeros(2).double()}, "extra_neg must be torch.float32 on cpu, but is torch.float64"),
        ({"extra_neg": torch.tensor([float("nan")])}, r"extra_neg\[0\] is nan"),
        ({"reduction": "none"}, "reduction must be 'mean' or 'sum'"),
    ],
)
def test_bad_batch_is_refused_by_name(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        mann_whitney_in_batch(**{"sim": torch.zeros(2, 2), **change})


def test_not_a_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match=r"neg_scores must be a torch\.Tensor, but is list"):
        mann_whitney(SCORES, [0.0])
    with pytest.raises(TypeError, match=r"extra_neg must be a torch\.Tensor, but is list"):
        mann_whitney_in_batch(torch.zeros(2, 2), extra_neg=[0.0])
