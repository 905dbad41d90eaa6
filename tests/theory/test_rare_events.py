"""Rare events against exact Gaussian tails; path sampling against complete enumeration."""

from __future__ import annotations

import math
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from lossbook.theory import cross_entropy_method, path_top_p

ZERO, ONE = torch.zeros(5), torch.ones(5)


def mean_score(x):
    return x.sum(dim=1) / math.sqrt(x.shape[1])


@pytest.mark.parametrize("level", [-1.0, 1.0, 3.0, 4.5, 6.0])
def test_gaussian_tail(level):
    """Ten repeats: their mean is the exact tail, and their spread is what the standard error says."""
    exact = norm.sf(level)
    found = [cross_entropy_method(mean_score, level, ZERO, ONE, seed=s) for s in range(10)]
    ratio = torch.tensor([f.probability for f in found]) / exact
    error = torch.tensor([f.standard_error for f in found]) / exact
    assert ratio.mean() == pytest.approx(1, abs=0.02)
    assert 0.3 * error.mean() < ratio.std() < 3 * error.mean()
    assert error.max() < 0.06


def test_a_tail_with_other_means_and_scales():
    """2 x_0 + 3 x_1 with x_0 ~ N(1, 4), x_1 ~ N(-2, 1/4) is N(-4, 16 + 9/4)."""
    found = cross_entropy_method(lambda x: 2 * x[:, 0] + 3 * x[:, 1], 16.0, [1.0, -2.0], [2.0, 0.5], seed=3)
    assert found.probability == pytest.approx(norm.sf(16, -4, math.sqrt(18.25)), rel=0.06)


def test_an_event_in_two_pieces():
    """|x| ≥ 4 in one dimension: the fitted Gaussian grows wide enough for both."""
    found = [cross_entropy_method(lambda x: x[:, 0].abs(), 4.0, [0.0], [1.0], seed=s) for s in range(10)]
    ratio = torch.tensor([f.probability for f in found]) / (2 * norm.sf(4))
    assert ratio.mean() == pytest.approx(1, abs=0.05)


def test_few_draws_an_iteration_are_wrong_without_saying_so():
    """The weakness that the docstring names: the standard error does not cover the gap to the truth."""
    found = [cross_entropy_method(mean_score, 4.5, ZERO, ONE, n=30, seed=s, max_iterations=500) for s in range(5)]
    assert all(f.probability + 10 * f.standard_error < norm.sf(4.5) for f in found)


def test_the_path_ends_at_the_level():
    found = cross_entropy_method(mean_score, 4.5, ZERO, ONE)
    assert found.levels[-1] == 4.5 and (found.levels.diff() > 0).all()
    assert found.means.shape == found.stds.shape == (len(found.levels) + 1, 5)
    assert torch.equal(found.means[0], ZERO.double()) and torch.equal(found.stds[0], ONE.double())
    # The event's own mean is 4.5 + 1/4.5 - … along the diagonal; smoothing leaves the last step short of it.
    hazard = norm.pdf(4.5) / norm.sf(4.5)
    assert mean_score(found.means[-1:]).item() == pytest.approx(hazard, abs=0.4)
    assert 0 < found.effective_size <= 20_000


def test_refit_is_the_weighted_maximum_likelihood_fit():
    """One iteration over an event that is not rare: the fitted moments are those of the truncated normal."""
    found = cross_entropy_method(lambda x: x[:, 0], 1.0, [0.0], [1.0], n=400_000, q=0.5, smoothing=1.0)
    hazard = norm.pdf(1) / norm.sf(1)
    assert found.means[-1].item() == pytest.approx(hazard, abs=0.01)
    assert found.stds[-1].item() == pytest.approx(math.sqrt(1 + hazard - hazard**2), abs=0.01)


def test_smoothing_mixes_with_the_step_before():
    ends = {
        a: cross_entropy_method(mean_score, -9.0, ZERO, ONE, smoothing=a, n=100).means[-1] for a in (0.25, 0.5, 1.0)
    }
    torch.testing.assert_close(ends[0.5], 0.5 * ends[1.0])
    torch.testing.assert_close(ends[0.25], 0.25 * ends[1.0])


def test_standard_deviations_do_not_collapse():
    found = cross_entropy_method(lambda x: -x.square().sum(dim=1), -0.02, [0.0, 0.0], [1.0, 3.0], n=200, smoothing=1.0)
    assert (found.stds >= torch.tensor([0.1, 0.3], dtype=torch.float64) - 1e-12).all()


def test_seeds():
    first, again, other = (cross_entropy_method(mean_score, 3.0, ZERO, ONE, seed=s) for s in (1, 1, 2))
    assert first.probability == again.probability != other.probability


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level": math.nan}, "level must"),
        ({"u_mean": torch.zeros(3)}, "u_mean and u_std must have one shape"),
        ({"u_mean": [0.0, 0.0, math.nan, 0.0, 0.0]}, "u_mean must be finite"),
        ({"u_std": [1.0, 1.0, 0.0, 1.0, 1.0]}, "u_std must be above 0"),
        ({"n": 1}, "n must be .* at least 2"),
        ({"q": 0.0}, "q must lie in"),
        ({"smoothing": 1.5}, "smoothing must lie in"),
        ({"n_final": 1}, "n_final must"),
        ({"seed": -1}, "seed must"),
        ({"score": lambda x: x}, r"score must give one number for each of 1000 rows, but gives shape \(1000, 5\)"),
        ({"score": lambda x: x[:, 0].log()}, "score.* must be finite"),
    ],
)
def test_bad_arguments_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        cross_entropy_method(**{"score": mean_score, "level": 2.0, "u_mean": ZERO, "u_std": ONE} | change)


def test_an_unreachable_level_is_given_up():
    with pytest.raises(RuntimeError, match="level 2 is not reached in 5 iterations"):
        cross_entropy_method(lambda x: x[:, 0].tanh(), 2.0, ZERO, ONE, max_iterations=5)


def chain(seed=0, states=4):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(states, states, generator=generator)).log_softmax(dim=1).double()


def markov(table):
    return lambda paths: table[paths[:, -1]]


def log_prob(table, path):
    return sum(table[a, b].item() for a, b in pairwise(path))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.floats(0.05, 1.0))
def test_paths_are_different_sorted_and_scored_right(seed, beams, p):
    table = chain(seed)
    paths, scores = path_top_p(markov(table), seed % 4, steps=5, beams=beams, p=p, seed=seed)
    assert paths.shape[1] == 6 and len(paths) == len(scores) <= beams
    assert (paths[:, 0] == seed % 4).all() and len({tuple(row) for row in paths.tolist()}) == len(paths)
    assert (scores.diff() <= 0).all()
    for path, score in zip(paths.tolist(), scores.tolist(), strict=True):
        assert score == pytest.approx(log_prob(table, path))


def test_all_paths_kept_is_complete_enumeration():
    table = chain()
    _, scores = path_top_p(markov(table), 0, steps=3, beams=64, p=1.0)
    every = sorted((log_prob(table, (0, *rest)) for rest in product(range(4), repeat=3)), reverse=True)
    torch.testing.assert_close(scores, torch.tensor(every, dtype=torch.float64))
    assert scores.exp().sum().item() == pytest.approx(1)


def test_one_beam_is_step_wise_top_p():
    """The frequencies of the first token are those of the nucleus, renormalised."""
    table = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().double().expand(4, 4)
    drawn = [path_top_p(markov(table), 0, steps=1, beams=1, p=0.75, seed=s)[0][0, 1].item() for s in range(2000)]
    share = torch.bincount(torch.tensor(drawn), minlength=4) / 2000
    torch.testing.assert_close(share, torch.tensor([0.625, 0.375, 0.0, 0.0]), atol=0.04, rtol=0)


def test_a_small_nucleus_is_the_likeliest_continuation_and_impossible_tokens_never_come():
    table = torch.tensor([[0.0, 0.6, 0.4], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]).log().double()
    paths, _ = path_top_p(markov(table), 0, steps=4, beams=3, p=0.01)
    assert paths.tolist() == [[0, 1, 0, 1, 0]]
    for s in range(50):
        _, scores = path_top_p(markov(table), 0, steps=4, beams=3, p=1.0, seed=s)
        assert torch.isfinite(scores).all()


def test_accumulated_scores_escape_a_garden_path():
    """The likelier first step leads where everything is unlikely: greedy steps take it, two paths kept do not."""
    table = torch.full((12, 12), 0.1 / 11)
    table[0] = 0.0
    table[0, 1], table[0, 2] = 0.55, 0.45
    table[1] = 1 / 12  # after 1 anything may come
    table[2, 3] = table[3, 3] = 0.9
    table = (table / table.sum(dim=1, keepdim=True)).log().double()
    greedy, _ = path_top_p(markov(table), 0, steps=3, beams=1, p=0.01)
    assert greedy[0, 1] == 1
    likeliest = [path_top_p(markov(table), 0, steps=3, beams=12, p=0.95, seed=s)[0][0, 1].item() for s in range(20)]
    assert sum(token == 2 for token in likeliest) > 15


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": -1}, "start must be .* at least 0"),
        ({"steps": 0}, "steps must be .* at least 1"),
        ({"beams": 0}, "beams must be .* at least 1"),
        ({"p": 0.0}, "p must lie in"),
        ({"p": 1.1}, "p must lie in"),
        ({"seed": 0.5}, "seed must be a whole number"),
        ({"log_prob_fn": lambda paths: torch.zeros(len(paths), 3)}, "must give log-probabilities"),
        ({"log_prob_fn": lambda paths: torch.zeros(3)}, "log_prob_fn must give 1 rows"),
    ],
)
def test_path_top_p_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        path_top_p(**{"log_prob_fn": markov(chain()), "start": 0, "steps": 2} | change)
