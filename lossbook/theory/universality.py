"""What a Bayes mixture pays for not knowing the truth: exactly, and by the weight of the models near it.

A class {P_θ} with prior weights w predicts by Q = Σ_θ w(θ) P_θ under log-loss. Its regret against the truth P_0 is
R_n = D(P_0ⁿ ‖ Qⁿ)/n nats per sample. Everything is computed in logarithms: the likelihood of a long sample underflows.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lossbook import checks

# Outcomes of `rule_regret` that are enumerated at most: 128 MB in float64.
_MOST_OUTCOMES = 2**24


def mixture_regret(log_prior: Any, log_lik: Any, truth: int, *, n: int = 1) -> float:
    """Regret of the mixture per sample, exactly: a sum over everything that could have been observed.

        R_n = (1/n) Σ_x P_0(x) [log P_0(x) - log Q(x)],    Q(x) = Σ_θ w(θ) P_θ(x)

    In nats, at least 0 and at most log(1/w(truth))/n.

    Args:
        log_prior: (K,) log w(θ); the weights sum to one, and may be 0 (-inf).
        log_lik: (K, X) log P_θ(x) for every outcome x of the whole sample, or for every value of a sufficient
            statistic of it, which gives the same regret. Each row is a distribution.
        truth: row of P_0.
        n: samples in the outcome.

    Raises:
        ValueError: weights or rows that do not sum to one within 1e-6, shapes that do not fit, truth no row.

    Source: Feder, Urbanke, Fogel 2025 (arXiv 2506.07661).
    """
    prior, lik = _class(log_prior, log_lik)
    if lik.dim() != 2:
        raise ValueError(f"log_lik must have shape (K, X), but has shape {tuple(lik.shape)}")
    total = lik.logsumexp(dim=1)
    if bool((total.abs() > 1e-6).any()) or bool(total.isnan().any()):
        row = int((~(total.abs() <= 1e-6)).nonzero()[0, 0])
        raise ValueError(f"log_lik[{row}] is no distribution: its probabilities sum to {float(total[row].exp()):g}")
    checks.whole("n", n, 1)
    excess = excess_log_loss(prior, lik, truth)
    # Outcomes that the truth excludes cost nothing, however they are priced.
    p = lik[truth].exp()
    return float((p * torch.where(p > 0, excess, 0.0)).sum()) / n


def excess_log_loss(log_prior: Any, log_lik: Any, truth: int) -> Tensor:
    """log P_0(x) - log Q(x) in nats: how much more the mixture paid than the truth on what was observed.

    Its mean over samples of the truth estimates the total regret n R_n, where enumerating is out of reach.

    Args:
        log_prior: (K,) log w(θ); the weights sum to one.
        log_lik: (K, ...) log P_θ of what was observed.
        truth: row of P_0.

    Returns:
        (...) float64; negative where another model explains the sample better than the truth does.
    """
    prior, lik = _class(log_prior, log_lik)
    checks.whole("truth", truth, 0, len(prior) - 1)
    if bool(lik.isnan().any()):
        raise ValueError("log_lik must not hold NaN")
    return lik[truth] - (prior.view(-1, *[1] * (lik.dim() - 1)) + lik).logsumexp(dim=0)


class WeightBound(NamedTuple):
    """The smallest of the bounds eps + log(1/w(B_eps))/n, the eps where it is attained, and log w(B_eps) there."""

    value: float
    eps: float
    log_weight: float


def weight_bound(kl: Any, log_prior: Any, n: int) -> WeightBound:
    """The least upper bound on the regret that the weights near the truth give.

        R_n <= min_{eps >= 0} [ eps + (1/n) log 1/w(B_eps) ],    B_eps = {θ: D(P_0 ‖ P_θ) <= eps}

    It holds because Q >= w(B_eps) times the mixture of B_eps alone, whose regret is at most eps (Jensen).

    Args:
        kl: (K,) D(P_0 ‖ P_θ) in nats *per sample*; inf is allowed.
        log_prior: (K,) log w(θ); the weights sum to one.
        n: number of samples.

    Returns:
        WeightBound; infinite where no model of positive weight is at a finite distance.

    Source: Feder, Urbanke, Fogel 2025 (arXiv 2506.07661).
    """
    distance, prior = _distances(kl, log_prior)
    checks.whole("n", n, 1)
    # Between two distances the ball does not change, so the least bound is at one of them.
    eps, order = distance.sort()
    log_weight = prior[order].logcumsumexp(dim=0)
    bound = eps - log_weight / n
    best = int(bound.nan_to_num(nan=math.inf).argmin())
    return WeightBound(float(bound[best]), float(eps[best]), float(log_weight[best]))


def ball_log_weight(kl: Any, log_prior: Any, eps: float) -> float:
    """log w(B_eps): log of the prior mass of the models with kl <= eps (up to rounding); -inf where there are none.

    Args:
        kl: (K,) D(P_0 ‖ P_θ) in nats per sample.
        log_prior: (K,) log w(θ); the weights sum to one.
        eps: at least 0.
    """
    distance, prior = _distances(kl, log_prior)
    checks.parameter("eps", eps, 0, infinite=True)
    return float(prior[distance <= eps + 1e-12 * (1 + eps)].logsumexp(dim=0))


def rule_index(outputs: Any) -> Tensor:
    """The number of a Boolean rule in the order that `rule_regret` uses: its outputs read as a binary number.

    Args:
        outputs: (..., A) 0 or 1, what the rule answers to each of its A inputs; A at most 63.

    Returns:
        (...) int64 in [0, 2^A): Σ_a outputs[a] 2^{A-1-a}.
    """
    table = torch.as_tensor(outputs)
    if table.dim() == 0 or not bool(((table == 0) | (table == 1)).all()):
        raise ValueError("outputs must hold 0 and 1, one for each input, in the last dimension")
    if table.shape[-1] > 63:
        raise ValueError(f"outputs must be of at most 63 inputs, or int64 overflows, but are of {table.shape[-1]}")
    return (table.long() << torch.arange(table.shape[-1] - 1, -1, -1, device=table.device)).sum(dim=-1)


def rule_kl(truth: Any, shown: Any, *, noise: float) -> Tensor:
    """D(P_0 ‖ P_f) per sample of every Boolean rule f on A inputs, in the order of `rule_index`.

        D = (1 - 2p) log((1 - p)/p) · (1/n) Σ_a shown_a [f(a) ≠ truth(a)],    n = Σ_a shown_a

    Args:
        truth: (A,) 0 or 1, the outputs of the true rule; A at most 20.
        shown: (A,) how often each input is shown, at least once in all.
        noise: p in (0, 1/2], the probability that a label is flipped.

    Returns:
        (2^A,) float64.
    """
    table, times, p = _rules(truth, shown, noise)
    wrong = torch.zeros(1, dtype=torch.float64)
    for answer, count in zip(table.tolist(), times.tolist(), strict=True):
        step = torch.tensor([answer, 1 - answer], dtype=torch.float64) * count
        wrong = (wrong[:, None] + step).flatten()
    return wrong * ((1 - 2 * p) * math.log((1 - p) / p) / int(times.sum()))


def rule_regret(log_prior: Any, truth: Any, shown: Any, *, noise: float) -> float:
    """Exact regret per sample of a mixture over all Boolean rules on A inputs, labels flipped with probability p.

    Input a is shown shown_a times. With k_a flipped labels there, k_a ~ Binomial(shown_a, p),

        R_n = -(1/n) Σ_k P(k) log Σ_f w(f) Π_{a: f(a) ≠ truth(a)} ((1 - p)/p)^{2 k_a - shown_a}

    All Π_a (shown_a + 1) values of k are summed over. The inner sum over 2^A rules is taken one input at a time, like
    a Walsh transform, so that it costs about as much as writing down its results.

    Args:
        log_prior: (2^A,) log w(f) in the order of `rule_index`; the weights sum to one.
        truth: (A,) 0 or 1.
        shown: (A,) whole numbers; Π_a max(shown_a + 1, 2), the largest table on the way, at most 2^24.
        noise: p in (0, 1/2].

    Returns:
        R_n in nats per sample, n = Σ_a shown_a.
    """
    table, times, p = _rules(truth, shown, noise)
    log_ratio = _log_weights(log_prior)
    if len(log_ratio) != 2 ** len(table):
        raise ValueError(f"log_prior must have 2^{len(table)} entries, one a rule, but has {len(log_ratio)}")
    if math.prod(max(r + 1, 2) for r in times.tolist()) > _MOST_OUTCOMES:
        raise ValueError(f"shown asks for more than {_MOST_OUTCOMES:,} outcomes; show fewer inputs, or fewer times")
    log_odds = math.log((1 - p) / p)
    prob = torch.ones(1, dtype=torch.float64)
    for answer, r in zip(table.tolist(), times.tolist(), strict=True):
        # The first dimension is input a's answer; its place is taken by k_a, which goes to the end of the rest.
        rules = log_ratio.view(2, -1)
        k = torch.arange(r + 1, dtype=torch.float64)
        penalty = log_odds * (2 * k - r)
        log_ratio = torch.logaddexp(rules[answer][:, None], rules[1 - answer][:, None] + penalty).flatten()
        log_choose = math.lgamma(r + 1) - torch.lgamma(k + 1) - torch.lgamma(r - k + 1)
        prob = (prob[:, None] * (log_choose + k * math.log(p) + (r - k) * math.log1p(-p)).exp()).flatten()
    return -float((prob * log_ratio).sum()) / int(times.sum())


def _rules(truth: Any, shown: Any, noise: float) -> tuple[Tensor, Tensor, float]:
    table, times = torch.as_tensor(truth), torch.as_tensor(shown)
    if table.dim() != 1 or not 1 <= len(table) <= 20 or not bool(((table == 0) | (table == 1)).all()):
        raise ValueError(f"truth must hold 0 and 1 for 1 to 20 inputs, but is {table.tolist()}")
    if times.shape != table.shape or times.is_floating_point() or bool((times < 0).any()) or int(times.sum()) == 0:
        raise ValueError(f"shown must count how often each of {len(table)} inputs is shown, but is {times.tolist()}")
    checks.parameter("noise", noise, 0, 0.5, open_low=True)
    return table.long(), times.long(), float(noise)


def _class(log_prior: Any, log_lik: Any) -> tuple[Tensor, Tensor]:
    prior, lik = _log_weights(log_prior), torch.as_tensor(log_lik, dtype=torch.float64)
    if lik.dim() == 0 or len(lik) != len(prior):
        raise ValueError(f"log_lik must have a row for each of {len(prior)} models, but has shape {tuple(lik.shape)}")
    return prior, lik


def _distances(kl: Any, log_prior: Any) -> tuple[Tensor, Tensor]:
    distance, prior = torch.as_tensor(kl, dtype=torch.float64), _log_weights(log_prior)
    if distance.shape != prior.shape or not bool((distance >= 0).all()):
        raise ValueError(f"kl must hold a distance >= 0 for each of {len(prior)} models")
    return distance, prior


def _log_weights(log_prior: Any) -> Tensor:
    prior = torch.as_tensor(log_prior, dtype=torch.float64)
    if prior.dim() != 1 or len(prior) == 0:
        raise ValueError(f"log_prior must have shape (K,), but has shape {tuple(prior.shape)}")
    total = float(prior.logsumexp(dim=0))
    if not abs(total) <= 1e-6:
        mass = math.exp(min(total, 700))
        raise ValueError(f"log_prior must hold the logarithms of weights that sum to one, but they sum to {mass:g}")
    return prior
