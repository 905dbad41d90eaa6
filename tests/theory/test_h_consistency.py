"""The consistency bounds: closed forms, limits, inverses, the inequality itself on random cases, and bad input."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from lossbook import losses
from lossbook.theory.h_consistency import (
    best_conditional_risk,
    conditional_risk,
    gamma,
    minimizability_gap,
    transform,
)

TAUS = [0.0, 0.3, 0.9, 1.0, 1.2, 1.7, 1.95, 2.0, 2.5, 4.0]
B = torch.linspace(0, 1, 21, dtype=torch.float64)

taus = st.one_of(st.sampled_from(TAUS), st.floats(0, 4), st.floats(-15, -1).map(lambda power: 1 + 10**power))


def simplex(n: int, c: int, seed: int) -> Tensor:
    """Random probability vectors, some of them near a corner."""
    generator = torch.Generator().manual_seed(seed)
    spread = 4 * torch.rand(n, 1, dtype=torch.float64, generator=generator)
    return (spread * torch.randn(n, c, dtype=torch.float64, generator=generator)).softmax(dim=1)


@pytest.mark.parametrize("num_classes", [2, 7])
def test_transform_closed_forms(num_classes: int) -> None:
    torch.testing.assert_close(transform(B, 0, num_classes), 1 - (1 - B**2).sqrt())
    entropy = -(torch.special.xlogy(1 + B, (1 + B) / 2) + torch.special.xlogy(1 - B, (1 - B) / 2)) / 2
    torch.testing.assert_close(transform(B, 1, num_classes), math.log(2) - entropy)
    mean = (((1 + B) ** 2 + (1 - B) ** 2) / 2) ** 0.5
    torch.testing.assert_close(transform(B, 1.5, num_classes), 2 * (mean - 1) / num_classes**0.5)
    torch.testing.assert_close(transform(B, 2, num_classes), B / num_classes)
    torch.testing.assert_close(transform(B, 3, num_classes), B / (2 * num_classes**2))


@pytest.mark.parametrize("tau", [1.0, 2.0])
@pytest.mark.parametrize("side", [-1e-5, -1e-7, 1e-7, 1e-5])
def test_transform_has_no_jump(tau: float, side: float) -> None:
    """Next to tau = 1 the fraction is 0/0, next to tau = 2 the powers overflow."""
    torch.testing.assert_close(transform(B, tau + side, 5), transform(B, tau, 5), rtol=1e-3, atol=1e-5)
    pi = simplex(20, 5, 0)
    torch.testing.assert_close(
        best_conditional_risk(pi, tau + side), best_conditional_risk(pi, tau), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("tau", [t for t in TAUS if t <= 2])
def test_transform_is_tight_for_two_classes(tau: float) -> None:
    """With two classes and equal scores the surrogate regret is exactly T(b)."""
    pi = torch.stack([(1 + B) / 2, (1 - B) / 2], dim=1)
    regret = conditional_risk(torch.zeros(len(B), 2, dtype=torch.float64), pi, tau) - best_conditional_risk(pi, tau)
    torch.testing.assert_close(transform(B, tau, 2), regret, atol=1e-9, rtol=1e-9)


def test_transform_is_tight_for_the_absolute_error() -> None:
    """tau = 2: one class below all others, and the hypothesis that ranks it first by a hair."""
    c, e = 6, 0.01
    pi = torch.full((1, c), 1 / c + e, dtype=torch.float64)
    pi[0, 0] = 1 / c - (c - 1) * e
    regret = conditional_risk(torch.zeros(1, c, dtype=torch.float64), pi, 2.0) - best_conditional_risk(pi, 2.0)
    torch.testing.assert_close(regret, transform(torch.tensor([c * e], dtype=torch.float64), 2.0, c), rtol=1e-9, atol=0)


@settings(max_examples=60, deadline=None)
@given(tau=taus, c=st.integers(2, 12), scale=st.floats(0, 5), seed=st.integers(0, 10_000))
def test_pointwise_bound(tau: float, c: int, scale: float, seed: int) -> None:
    """T(max pi - pi_argmax f) <= conditional risk - C*, at 200 random x."""
    pi = simplex(200, c, seed)
    noise = torch.randn(200, c, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    # Half of the scores are almost tied, where the bound is closest; no tie is exact.
    f = noise * torch.where(torch.arange(200)[:, None] % 2 == 0, scale + 1e-3, 1e-6)
    zero_one = pi.amax(dim=1) - pi.gather(1, f.argmax(dim=1, keepdim=True)).squeeze(1)
    regret = conditional_risk(f, pi, tau) - best_conditional_risk(pi, tau)
    assert (transform(zero_one, tau, c) <= regret + 1e-5 * scale + 1e-5).all()


@settings(max_examples=60, deadline=None)
@given(tau=taus, c=st.integers(2, 200), b=st.floats(1e-3, 1))
def test_gamma_inverts_transform(tau: float, c: int, b: float) -> None:
    t = transform(b, tau, c)
    assert gamma(t, tau, c).item() == pytest.approx(b, rel=1e-6)
    assert transform(gamma(t, tau, c), tau, c).item() == pytest.approx(t.item(), rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(tau=taus, c=st.integers(2, 200), t=st.floats(0, 3))
def test_gamma_lies_below_the_simple_forms(tau: float, c: int, t: float) -> None:
    if tau < 1:
        simple = math.sqrt(2**tau * (2 - tau) * t)
    elif tau < 2:
        simple = math.sqrt(2 * c ** (tau - 1) * t)
    else:
        simple = (tau - 1) * c ** (tau - 1) * t
    assert 0 <= gamma(t, tau, c).item() <= min(simple, 1) + 2e-5


def test_gamma_ends() -> None:
    t = torch.tensor([0.0, math.log(2), 0.7, 50.0])
    torch.testing.assert_close(gamma(t, 1.0, 3), torch.tensor([0.0, 1, 1, 1], dtype=torch.float64))
    assert gamma(t.view(2, 2), 1.5, 3).shape == (2, 2)
    assert all(gamma(0.0, tau, 3) == 0 for tau in TAUS)


@pytest.mark.parametrize("tau", TAUS)
def test_transform_is_convex_and_increasing(tau: float) -> None:
    rise = transform(B, tau, 4).diff()
    assert transform(0.0, tau, 4) == 0
    assert (rise > 0).all()
    assert (rise.diff() > -1e-12).all()


@pytest.mark.parametrize("tau", TAUS)
def test_best_conditional_risk_is_what_a_search_finds(tau: float) -> None:
    pi = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64)

    def objective(f):
        scores = torch.tensor(f[None], requires_grad=True)
        value = conditional_risk(scores, pi, tau).sum()
        value.backward()
        return value.item(), scores.grad[0].numpy()

    found = min(minimize(objective, s * torch.eye(4)[0].double().numpy(), jac=True).fun for s in (0.1, 3.0))
    best = best_conditional_risk(pi, tau).item()
    assert best <= found + 1e-12
    assert found == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.5, 1.9])
def test_best_conditional_risk_is_reached_at_the_tempered_posterior(tau: float) -> None:
    pi = simplex(30, 5, 1)
    risk = conditional_risk(pi.log() / (2 - tau), pi, tau)
    torch.testing.assert_close(risk, best_conditional_risk(pi, tau), rtol=1e-9, atol=1e-10)


def test_a_certain_label_costs_nothing() -> None:
    certain = torch.tensor([[1.0, 0, 0]])
    for tau in TAUS:
        assert best_conditional_risk(certain, tau).abs().item() < 1e-12


def test_conditional_risk_is_the_expected_loss() -> None:
    pi, f = simplex(5, 3, 2), torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    by_label = [losses.comp_sum(f, torch.full((5,), k), tau=0.7, reduction="none") for k in range(3)]
    torch.testing.assert_close(conditional_risk(f, pi, 0.7), (pi * torch.stack(by_label, dim=1)).sum(dim=1))
    assert torch.autograd.gradcheck(lambda s: conditional_risk(s, pi, 0.7), f.requires_grad_(True))


def test_gap_by_hand() -> None:
    risks = torch.tensor([[0.0, 3.0], [2.0, 1.0], [4.0, 4.0]])
    assert minimizability_gap(risks) == pytest.approx(1.5 - 0.5)
    assert minimizability_gap(risks, torch.tensor([0.25, 0.75])) == pytest.approx(1.25 - 0.75)
    assert minimizability_gap(risks[:2], best=torch.tensor([0.0, 0.0])) == pytest.approx(1.5)
    assert minimizability_gap(torch.tensor([[1.0, 2.0], [1.5, 3.0]])) == 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), h=st.integers(1, 6))
def test_gap_of_products_is_zero(seed: int, h: int) -> None:
    """A set that chooses freely at each x has no gap; a subset of it has one that is not negative."""
    choices = torch.rand(h, 3, generator=torch.Generator().manual_seed(seed))
    free = torch.cartesian_prod(*choices.T).view(-1, 3)
    assert minimizability_gap(free) == pytest.approx(0, abs=1e-9)
    assert minimizability_gap(choices) >= -1e-9


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: transform(1.5, 1, 2), r"b must lie in \[0, 1\]"),
        (lambda: transform(float("nan"), 1, 2), "b must be finite"),
        (lambda: transform(0.5, -0.1, 2), "tau must lie in"),
        (lambda: transform(0.5, 1, 1), "num_classes must be a whole number of at least 2"),
        (lambda: gamma(-0.1, 1, 2), "t must not be negative"),
        (lambda: gamma(0.1, float("nan"), 2), "tau must lie in"),
        (lambda: best_conditional_risk(torch.tensor([[0.5, 0.6]]), 1), r"pi\[0\] is not a probability vector"),
        (lambda: best_conditional_risk(torch.tensor([0.5, 0.5]), 1), r"pi must have shape \(N, C\)"),
        (lambda: best_conditional_risk(torch.tensor([[0.5, 0.5]]), -1), "tau must lie in"),
        (
            lambda: conditional_risk(torch.zeros(1, 3), torch.tensor([[0.5, 0.5]]), 1),
            "logits must have the shape of pi",
        ),
        (lambda: conditional_risk(torch.zeros(1, 2), torch.tensor([[1.5, -0.5]]), 1), "not a probability vector"),
        (lambda: minimizability_gap(torch.zeros(3)), r"risks must have shape \(H, X\)"),
        (lambda: minimizability_gap(torch.zeros(2, 3), torch.ones(3)), "weight must be probabilities"),
        (lambda: minimizability_gap(torch.zeros(2, 3), best=torch.ones(2)), r"best must have shape \(3,\)"),
        (lambda: minimizability_gap(torch.tensor([[float("inf")]])), "risks must be finite"),
    ],
)
def test_bad_input_is_refused_by_name(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


def test_conditional_risk_keeps_the_dtype_and_refuses_what_is_no_tensor() -> None:
    pi = torch.tensor([[0.5, 0.5]])
    assert conditional_risk(torch.zeros(1, 2), pi, 1).dtype == torch.float32
    with pytest.raises(TypeError, match=r"logits must be a torch\.Tensor, but is list"):
        conditional_risk([[0.0, 0.0]], pi, 1)
