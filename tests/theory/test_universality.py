"""Mixture regret: brute force over all samples, the weight bound as a property, the class of Boolean rules."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook.theory import universality as u

ALIKE = [-12 * math.log(2)] * 2**12  # twelve inputs, every rule alike
EIGHT = torch.full((8,), -math.log(8), dtype=torch.float64)


def coins(thetas: list[float], n: int) -> torch.Tensor:
    """log P(number of heads) for each coin, (K, n + 1): a sufficient statistic of n tosses."""
    heads = torch.arange(n + 1, dtype=torch.float64)
    theta = torch.tensor(thetas, dtype=torch.float64)
    return torch.distributions.Binomial(n, theta[:, None], validate_args=False).log_prob(heads)


def sequences(thetas: list[float], n: int) -> torch.Tensor:
    """log P of each of the 2^n sequences for each coin."""
    heads = torch.tensor([sum(s) for s in itertools.product((0, 1), repeat=n)], dtype=torch.float64)
    theta = torch.tensor(thetas, dtype=torch.float64)[:, None]
    return heads * theta.log() + (n - heads) * (1 - theta).log()


def test_two_coins_by_hand():
    # One toss, coins 1/2 and 1/4 with equal weights: Q(heads) = 3/8.
    expected = 0.5 * math.log(0.5 / 0.375) + 0.5 * math.log(0.5 / 0.625)
    log_lik = torch.tensor([[0.5, 0.5], [0.25, 0.75]]).double().log()
    assert u.mixture_regret([math.log(0.5)] * 2, log_lik, 0) == pytest.approx(expected, rel=1e-12)


def test_a_sufficient_statistic_is_enough():
    thetas = [0.2, 0.5, 0.9]
    prior = torch.tensor([0.2, 0.3, 0.5]).double().log()
    for truth in range(3):
        short = u.mixture_regret(prior, coins(thetas, 9), truth, n=9)
        assert short == pytest.approx(u.mixture_regret(prior, sequences(thetas, 9), truth, n=9), rel=1e-9)


def test_long_samples_do_not_underflow():
    # 5,000 tosses: each sequence has probability below 1e-1000. What is left is the price of the prior, log 3.
    n = 5000
    regret = u.mixture_regret([-math.log(3)] * 3, coins([0.2, 0.5, 0.9], n), 1, n=n)
    assert n * regret == pytest.approx(math.log(3), rel=1e-9)


def test_excess_over_the_truth_averages_to_the_regret():
    thetas, prior = [0.3, 0.6], torch.tensor([0.9, 0.1]).double().log()
    log_lik = sequences(thetas, 6)
    excess = u.excess_log_loss(prior, log_lik, 1)
    assert excess.shape == (64,)
    assert float((log_lik[1].exp() * excess).sum()) == pytest.approx(6 * u.mixture_regret(prior, log_lik, 1, n=6))
    drawn = torch.multinomial(log_lik[1].exp(), 100_000, replacement=True, generator=torch.Generator().manual_seed(0))
    assert float(excess[drawn].mean()) == pytest.approx(6 * u.mixture_regret(prior, log_lik, 1, n=6), abs=0.02)


def test_outcomes_that_the_truth_excludes_cost_nothing():
    log_lik = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).double().log()
    assert u.mixture_regret([math.log(0.5)] * 2, log_lik, 0) == pytest.approx(-math.log(0.75))
    assert u.mixture_regret([0.0, -math.inf], log_lik, 1) == math.inf, "a truth without weight, on what others exclude"


@given(st.lists(st.tuples(st.floats(0.01, 0.99), st.floats(-9, 9)), min_size=2, max_size=6), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_regret_is_below_the_bound_at_every_eps(coin_bag, n):
    thetas = [theta for theta, _ in coin_bag]
    prior = torch.tensor([score for _, score in coin_bag]).double().log_softmax(dim=0)
    kl = [(coins([thetas[0]], 1).exp() * (coins([thetas[0]], 1) - coins([t], 1))).sum().clamp(min=0) for t in thetas]
    regret = u.mixture_regret(prior, coins(thetas, n), 0, n=n)
    best = u.weight_bound(torch.stack(kl), prior, n)
    assert -1e-12 <= regret <= best.value + 1e-9
    for eps in [float(distance) for distance in kl] + [0.0, 0.1, 1.0]:
        at_eps = eps - u.ball_log_weight(torch.stack(kl), prior, eps) / n
        assert best.value <= at_eps + 1e-9, "weight_bound is the minimum over eps"
    assert best.value == pytest.approx(best.eps - best.log_weight / n)


def test_bound_without_weight_near_the_truth_is_infinite():
    assert u.weight_bound([math.inf, math.inf], [math.log(0.5)] * 2, 4).value == math.inf
    assert u.weight_bound([0.0, 1.0], [-math.inf, 0.0], 4).value == pytest.approx(1.0)
    assert u.ball_log_weight([0.5, 1.0], [math.log(0.5)] * 2, 0.1) == -math.inf


def brute_force(log_prior: torch.Tensor, truth: list[int], shown: list[int], noise: float) -> float:
    """The regret by writing down every label sequence of a fixed order of inputs."""
    order = [a for a, times in enumerate(shown) for _ in range(times)]
    rules = list(itertools.product((0, 1), repeat=len(truth)))
    labels = list(itertools.product((0, 1), repeat=len(order)))
    log_lik = [
        [sum(math.log(1 - noise if f[a] == y else noise) for a, y in zip(order, ys, strict=True)) for ys in labels]
        for f in rules
    ]
    return u.mixture_regret(log_prior, log_lik, rules.index(tuple(truth)), n=len(order))


@pytest.mark.parametrize(
    ("truth", "shown"), [([0, 1, 1], [1, 1, 1]), ([1, 1, 0], [3, 0, 2]), ([0, 0, 0], [0, 0, 4]), ([1, 0, 1], [2, 3, 2])]
)
def test_rules_against_brute_force(truth, shown):
    log_prior = torch.randn(8, generator=torch.Generator().manual_seed(sum(shown))).double().log_softmax(dim=0)
    found = u.rule_regret(log_prior, truth, shown, noise=0.1)
    assert found == pytest.approx(brute_force(log_prior, truth, shown, 0.1), rel=1e-9)


def test_without_prior_knowledge_every_input_is_learned_alone():
    # Under the uniform prior the first label at an input is a fair coin to the mixture: log 2 - H(p) each.
    p = 0.1
    one = math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p)
    for truth in ([0, 0, 0], [1, 0, 1]):
        assert u.rule_regret(EIGHT, truth, [1, 1, 1], noise=p) == pytest.approx(one)
    assert u.rule_regret(EIGHT, [0, 1, 0], [1, 1, 1], noise=0.5) == pytest.approx(0, abs=1e-12)


@given(st.integers(0, 7), st.lists(st.integers(0, 3), min_size=3, max_size=3), st.floats(0.01, 0.5), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_rules_are_below_their_bound(index, shown, noise, seed):
    if sum(shown) == 0:
        return
    prior = (2 * torch.randn(8, generator=torch.Generator().manual_seed(seed)).double()).log_softmax(dim=0)
    truth = [(index >> 2) & 1, (index >> 1) & 1, index & 1]
    kl = u.rule_kl(truth, shown, noise=noise)
    regret = u.rule_regret(prior, truth, shown, noise=noise)
    assert -1e-12 <= regret <= u.weight_bound(kl, prior, sum(shown)).value + 1e-9


def test_rule_index_and_distance():
    assert u.rule_index([[0, 0, 1], [1, 0, 1]]).tolist() == [1, 5]
    kl = u.rule_kl([1, 0, 1], [2, 1, 1], noise=0.25)
    unit = 0.5 * math.log(3) / 4
    assert kl[5] == 0
    assert float(kl[1]) == pytest.approx(2 * unit)
    assert float(kl[0b010]) == pytest.approx(4 * unit)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: u.mixture_regret([0.0, 0.0], [[0.0], [0.0]], 0), "weights that sum to one, but they sum to 2"),
        (lambda: u.mixture_regret([0.0], [[-1.0, -2.0]], 0), r"log_lik\[0\] is no distribution"),
        (lambda: u.mixture_regret([0.0], [[math.nan, 0.0]], 0), r"log_lik\[0\] is no distribution"),
        (lambda: u.mixture_regret([0.0], [0.0], 0), r"log_lik must have shape \(K, X\)"),
        (lambda: u.mixture_regret([0.0], [[0.0], [0.0]], 0), "log_lik must have a row for each of 1 models"),
        (lambda: u.mixture_regret([0.0], [[0.0]], 1), "truth must be a whole number of at least 0 and at most 0"),
        (lambda: u.mixture_regret([0.0], [[0.0]], 0, n=0), "n must be a whole number of at least 1"),
        (lambda: u.weight_bound([-1.0], [0.0], 1), "kl must hold a distance >= 0"),
        (lambda: u.weight_bound([0.0, 1.0], [0.0], 1), "kl must hold a distance >= 0 for each of 1 models"),
        (lambda: u.ball_log_weight([0.0], [0.0], -1.0), "eps must lie in"),
        (lambda: u.rule_index([0, 2]), "outputs must hold 0 and 1"),
        (lambda: u.rule_kl([0, 1], [1], noise=0.1), "shown must count"),
        (lambda: u.rule_kl([0, 1], [0, 0], noise=0.1), "shown must count"),
        (lambda: u.rule_kl([0, 3], [1, 1], noise=0.1), "truth must hold 0 and 1"),
        (lambda: u.rule_kl([0, 1], [1, 1], noise=0.0), r"noise must lie in \(0, 0.5\]"),
        (lambda: u.rule_regret(EIGHT, [0, 1], [1, 1], noise=0.1), r"log_prior must have 2\^2 entries"),
        (lambda: u.rule_regret(EIGHT, [0, 1, 0], [999, 999, 999], noise=0.1), "more than 16,777,216 outcomes"),
        (
            lambda: u.rule_regret([-12 * math.log(2)] * 2**12, [0] * 12, [9] * 6 + [0] * 6, noise=0.1),
            "more than 16,777,216 outcomes",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_likelihoods_that_are_nan_and_rules_too_long_are_refused():
    with pytest.raises(ValueError, match="log_lik must not hold NaN"):
        u.excess_log_loss([math.log(0.5)] * 2, [[0.0, math.nan]] * 2, 0)
    assert u.rule_index(torch.ones(63)) == 2**63 - 1
    with pytest.raises(ValueError, match="outputs must be of at most 63 inputs"):
        u.rule_index(torch.ones(64))
