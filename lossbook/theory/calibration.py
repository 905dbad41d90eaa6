"""What calibration can and cannot repair, where the answer is known."""

from __future__ import annotations

import math
from typing import NamedTuple

from lossbook import checks


class OverlapRisk(NamedTuple):
    """The best temperature for an interpolating network on classes that overlap."""

    confidence: float  #: c*, the confidence that the best temperature gives
    risk: float  #: R*, the expected Kullback-Leibler divergence from the truth that is left, in nats


def overlap_temperature_risk(q: float, num_classes: int) -> OverlapRisk:
    """The least risk that a temperature can reach when every prediction is equally sure and classes overlap.

    K classes come in pairs. With probability q a sample lies in the region its pair shares, where the truth is (1/2,
    1/2) on the pair; otherwise the truth is one class. An interpolating network predicts one class of the pair (outside
    the shared region the right one) with the same margin everywhere and equal logits for all others, so that a
    temperature leaves it one number to choose, its confidence c, with (1 - c)/(K - 1) for every other class. The
    expected divergence KL(truth || prediction) is

        R(c) = -(1 - q/2) log c - (q/2) log( (1 - c)/(K - 1) ) - q log 2

    with minimum c* = 1 - q/2 and R* = h(q/2) + (q/2) log(K - 1) - q log 2, h(u) = -u log u - (1 - u) log(1 - u). The
    network is right with probability 1 - q/2 = c*: its confidence is perfectly calibrated. Still R* grows with K like
    (q/2) log K. The uniform guess has risk log K - q log 2, and R* is never above it.

    Args:
        q: share of samples in a shared region, in [0, 1].
        num_classes: K at least 2.

    Raises:
        ValueError: an argument is out of its range.

    Source: a solvable version of Chidambaram and Ge 2024 (arXiv 2306.00740), by hand.
    """
    checks.parameter("q", q, 0, 1)
    k = checks.whole("num_classes", num_classes, 2)
    wrong = float(q) / 2
    entropy = -math.log1p(-wrong) * (1 - wrong) - (wrong * math.log(wrong) if wrong else 0.0)
    # q log 2 is the entropy of the truth; with two classes and q = 1 nothing is left, up to rounding.
    return OverlapRisk(1 - wrong, max(0.0, entropy + wrong * math.log(k - 1) - 2 * wrong * math.log(2)))
