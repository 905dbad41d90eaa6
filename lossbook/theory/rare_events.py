"""The cross-entropy method for rare events, and sampling whole paths from a nucleus."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lossbook import checks


class RareEvent(NamedTuple):
    """What `cross_entropy_method` found after T iterations.

    probability: the importance-sampling estimate of P(S(X) ≥ level).
    standard_error: its estimated standard deviation.
    effective_size: (Σ W)²/Σ W² of the weighted hits: as many equally weighted ones would be as good.
    levels: (T,) the level γ_t of each iteration; the last is the level asked for.
    means, stds: (T + 1, d) the sampling distribution, from u to the one that the estimate was drawn from.
    """

    probability: float
    standard_error: float
    effective_size: float
    levels: Tensor
    means: Tensor
    stds: Tensor


@torch.no_grad()
def cross_entropy_method(
    score: Callable[[Tensor], Tensor],
    level: float,
    u_mean: Any,
    u_std: Any,
    *,
    n: int = 1000,
    q: float = 0.1,
    smoothing: float = 0.7,
    n_final: int = 20_000,
    max_iterations: int = 50,
    seed: int = 0,
) -> RareEvent:
    """P(S(X) ≥ γ) for X ~ N(u_mean, diag u_std²), by importance sampling from a Gaussian that is fitted to the event.

    The density that would have no variance is X's own, conditioned on the event. Each iteration moves the sampling
    density v towards it, by cross-entropy. Draw X_1 … X_n ~ N(v); take γ_t = min(γ, the (1 - q)-quantile of S(X_i));
    maximise the weighted log-likelihood of the elite, Σ_{S(X_i) ≥ γ_t} W_i log f(X_i; v), W_i = f(X_i; u)/f(X_i; v).
    For a Gaussian that is the elite's weighted mean and standard deviation. Then v ← smoothing · fitted + (1 -
    smoothing) · v. After the iteration with γ_t = γ: mean of W_i 1[S(X_i) ≥ γ] over n_final draws from v.

    Args:
        score: S, takes (n, d) float64 and gives (n,) finite numbers.
        level: γ.
        u_mean, u_std: (d,) mean and standard deviations, these above 0, of X.
        n: draws an iteration, at least 2.
        q: share of the draws that is elite, in (0, 1).
        smoothing: in (0, 1]; 1 forgets the iteration before.
        n_final: draws of the estimate, at least 2.
        max_iterations: give up after so many.
        seed: of the draws.

    A fitted standard deviation is kept above a tenth of u_std: few elites would let it collapse. A sampling density
    that is narrower than the event misses a part of it, and neither the estimate nor its standard error shows that:
    give n thousands of draws, or compare seeds.

    Raises:
        ValueError: an argument is out of its range, or score gives another shape, NaN or infinity.
        RuntimeError: the level is not reached in max_iterations.

    Source: Rubinstein 1999; de Boer, Kroese, Mannor, Rubinstein 2005, A Tutorial on the Cross-Entropy Method.
    """
    u = _gaussian(u_mean, u_std)
    checks.parameter("level", level, -math.inf, math.inf)
    checks.parameter("q", q, 0.0, 1.0, open_low=True)
    checks.parameter("smoothing", smoothing, 0.0, 1.0, open_low=True)
    n, n_final = checks.whole("n", n, 2), checks.whole("n_final", n_final, 2)
    max_iterations, seed = checks.whole("max_iterations", max_iterations, 1), checks.whole("seed", seed, 0, 2**63 - 1)
    generator = torch.Generator().manual_seed(seed)

    def draw(v: torch.distributions.Normal, size: int) -> tuple[Tensor, Tensor, Tensor]:
        x = v.mean + v.stddev * torch.randn(size, len(v.mean), generator=generator, dtype=torch.float64)
        log_w = (u.log_prob(x) - v.log_prob(x)).sum(dim=1)
        return x, _scores(score, x), log_w

    v, path = u, [u]
    levels: list[float] = []
    while not levels or levels[-1] < level:
        if len(levels) == max_iterations:
            raise RuntimeError(f"level {level:g} is not reached in {max_iterations} iterations, only {levels[-1]:g}")
        x, s, log_w = draw(v, n)
        levels.append(min(float(level), s.quantile(1 - q).item()))
        elite = s >= levels[-1]
        # The common factor of the weights cancels; without it their exponentials stay in range.
        w = torch.softmax(log_w[elite], dim=0)[:, None]
        mean = (w * x[elite]).sum(dim=0)
        std = (w * (x[elite] - mean).square()).sum(dim=0).sqrt().maximum(0.1 * u.stddev)
        v = torch.distributions.Normal(
            smoothing * mean + (1 - smoothing) * v.mean, smoothing * std + (1 - smoothing) * v.stddev
        )
        path.append(v)
    _, s, log_w = draw(v, n_final)
    hits = torch.where(s >= level, log_w.exp(), 0.0)
    return RareEvent(
        probability=hits.mean().item(),
        standard_error=hits.std().item() / math.sqrt(n_final),
        effective_size=(hits.sum().square() / hits.square().sum()).nan_to_num(0.0).item(),
        levels=torch.tensor(levels, dtype=torch.float64),
        means=torch.stack([step.mean for step in path]),
        stds=torch.stack([step.stddev for step in path]),
    )


@torch.no_grad()
def path_top_p(
    log_prob_fn: Callable[[Tensor], Tensor],
    start: int,
    *,
    steps: int,
    beams: int = 4,
    p: float = 0.9,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Top-p sampling of whole paths: the nucleus is taken over accumulated path probabilities, not over one step's.

    At each step every kept path is continued by every token. A continuation scores the log-probability of its whole
    path, l(path) + log P(token | path). The nucleus is the smallest set of continuations whose softmax of scores sums
    to at least p; `beams` of them are drawn from it without replacement, with probabilities in proportion, or all of it
    where it holds fewer. With beams=1 this is step-wise top-p sampling.

    Args:
        log_prob_fn: takes paths (B, L) of int64 tokens and gives (B, V) log-probabilities of the next token; -inf where
            it is impossible.
        start: the first token of every path.
        steps: how many tokens are added, at least 1.
        beams: how many paths are kept, at least 1.
        p: mass of the nucleus, in (0, 1]; at 1 nothing is cut off.
        seed: of the draws.

    Returns:
        paths (B, steps + 1) int64 with B ≤ beams, all different, and their log-probabilities (B,), likeliest first.

    Raises:
        ValueError: an argument is out of its range, or log_prob_fn gives another shape, or rows that are no
            log-probabilities.

    Source: Li and Li 2024, Analysis on Riemann Hypothesis with Cross Entropy Optimization and Reasoning, which
    describes it in words as top-p sampling combined with beam search.
    """
    start, steps, beams = (
        checks.whole("start", start, 0),
        checks.whole("steps", steps, 1),
        checks.whole("beams", beams, 1),
    )
    checks.parameter("p", p, 0.0, 1.0, open_low=True)
    generator = torch.Generator().manual_seed(checks.whole("seed", seed, 0, 2**63 - 1))
    paths, scores = torch.tensor([[start]]), torch.zeros(1, dtype=torch.float64)
    for _ in range(steps):
        step = _log_probs(log_prob_fn, paths)
        total, order = (scores[:, None] + step).flatten().sort(descending=True)
        share = torch.softmax(total, dim=0)
        # A continuation belongs to the nucleus while those before it sum to less than p.
        share = torch.where(share.cumsum(dim=0) - share < p, share, 0.0)
        kept = torch.multinomial(share, min(beams, int((share > 0).sum())), generator=generator).sort().values
        parent, token = order[kept] // step.shape[1], order[kept] % step.shape[1]
        paths, scores = torch.cat([paths[parent], token[:, None]], dim=1), total[kept]
    return paths, scores


def _gaussian(u_mean: Any, u_std: Any) -> torch.distributions.Normal:
    mean, std = (torch.as_tensor(value, dtype=torch.float64) for value in (u_mean, u_std))
    if mean.dim() != 1 or len(mean) == 0 or mean.shape != std.shape:
        raise ValueError(
            f"u_mean and u_std must have one shape (d,), but have {tuple(mean.shape)} and {tuple(std.shape)}"
        )
    checks.finite("u_mean", mean)
    checks.finite("u_std", std)
    if not (std > 0).all():
        raise ValueError(f"u_std must be above 0, but is {std.tolist()}")
    return torch.distributions.Normal(mean, std)


def _scores(score: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    values = torch.as_tensor(score(x), dtype=torch.float64)
    if values.shape != x.shape[:1]:
        raise ValueError(f"score must give one number for each of {len(x)} rows, but gives shape {tuple(values.shape)}")
    checks.finite("score(x)", values)
    return values


def _log_probs(log_prob_fn: Callable[[Tensor], Tensor], paths: Tensor) -> Tensor:
    step = torch.as_tensor(log_prob_fn(paths), dtype=torch.float64)
    if step.dim() != 2 or len(step) != len(paths):
        raise ValueError(f"log_prob_fn must give {len(paths)} rows, one a path, but gives shape {tuple(step.shape)}")
    mass = step.exp().sum(dim=1)
    if not ((mass - 1).abs() <= 1e-4).all():
        raise ValueError(f"log_prob_fn must give log-probabilities, but the rows of exp sum to {mass.tolist()}")
    return step
