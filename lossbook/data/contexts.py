"""Digits before backgrounds that give their class away, most of the time."""

from __future__ import annotations

import colorsys
import math
from typing import NamedTuple

import torch
from torch import Tensor

from lossbook import checks
from lossbook.data import _checks


class ContextualDigits(NamedTuple):
    """Digits with the context that each stands before. Unpacks to x, y, context, own.

    x: `(N, 3, 12, 12)` float32 in [0, 1].
    y: `(N,)` int64, the digit.
    context: `(N,)` int64, the background, in [0, num_contexts).
    own: `(N,)` int64, the background that goes with the digit: aligned images are those with context == own.
    """

    x: Tensor
    y: Tensor
    context: Tensor
    own: Tensor


def contextual_digits(rho: float, *, num_contexts: int = 5, seed: int = 0) -> ContextualDigits:
    """scikit-learn's 1797 digits, white on coloured stripes, where the stripes tell the digit with probability rho.

        P(g = own(y)) = rho,    P(g) = (1 - rho) / (G - 1) for every other context,    own(y) = y mod G

    rho = 1/G makes context and digit independent, rho = 1 makes the context tell all there is to know, up to digits
    that share one. With G = 5, digits 0 to 4 have a context each, and digits 5 to 9 the same five: novel classes meet
    no context that training has not seen, and none that it saw belong to a novel class. Context g has the hue g/G and
    stripes at the angle pi g/G, with a phase of each image's own.

    Order, phases and the draw behind each context come from the seed alone: with another rho row i is the same digit
    and only some contexts change, so that rows of one draw can train and other rows of another test.

    Args:
        rho: in [0, 1].
        num_contexts: G in [2, 10].
        seed: of order, phases and contexts.

    Returns:
        ContextualDigits with 1797 rows in random order.

    Raises:
        ValueError: an argument is out of its range.

    Source: the question, not the images, of Zhang et al. 2024, MetaCoCo (arXiv 2404.19644).
    """
    from sklearn.datasets import load_digits

    rho = _checks.number("rho", rho, 0, 1)
    num_contexts = checks.whole("num_contexts", num_contexts, 2, 10)
    generator = torch.Generator().manual_seed(_checks.seed(seed))
    bunch = load_digits()
    n = len(bunch.target)
    order = torch.randperm(n, generator=generator)
    ink = torch.nn.functional.pad(torch.from_numpy(bunch.images).float()[order] / 16, (2, 2, 2, 2))[:, None]
    y = torch.from_numpy(bunch.target).long()[order]
    own = y % num_contexts
    elsewhere = torch.rand(n, generator=generator, dtype=torch.float64) >= rho
    other = torch.randint(1, num_contexts, (n,), generator=generator)
    context = (own + elsewhere * other) % num_contexts
    ground = _stripes(context, num_contexts, 2 * math.pi * torch.rand(n, generator=generator))
    return ContextualDigits(ink + (1 - ink) * ground, y, context, own)


def _stripes(context: Tensor, num_contexts: int, phase: Tensor) -> Tensor:
    """Backgrounds `(N, 3, 12, 12)`: stripes four pixels wide, between 0.2 and 0.7 of the context's colour."""
    hues = torch.tensor([colorsys.hsv_to_rgb(g / num_contexts, 1.0, 1.0) for g in range(num_contexts)])
    angle = math.pi * context / num_contexts
    row, column = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    along = angle.cos()[:, None, None] * column + angle.sin()[:, None, None] * row
    wave = (math.pi / 2 * along + phase[:, None, None]).cos()
    return hues[context][:, :, None, None] * (0.45 + 0.25 * wave)[:, None]
