"""Sums of softplus over all pairs of two sets of numbers, in O(N log N) time and O(N) memory.

softplus is analytic, so that over two short intervals it is a polynomial to the last digit, and far from 0 it is a line
plus a few exponentials e^{mu}, each a product of a function of either argument. Hence a one-dimensional fast multipole
method: cut the line into boxes, replace the numbers in a box by their Chebyshev moments, combine near boxes through
small matrices and far boxes through running sums. No pair is left out. What is neglected is below the rounding of a
float64, and the tests hold the sums against those over explicit pairs.

Conventions: a box is a whole number k (kept as a float) and holds the positions width * (k + (1 + place) / 2) with
place in [-1, 1]; moments (P, B) are sum_i T_p(place_i) for each box; a field (P, B) holds the Chebyshev coefficients of
a function of the place in each box. The width is omega times the temperature, 1 < omega <= 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import softplus

# The singularities of softplus at +-i pi make the coefficients on a box (half-width <= 1) fall by 6.4 each.
_DEGREES = 20
# Boxes up to this number apart are near. Further ones are at least 4 temperatures apart, where the term m of the series
# is e^{-4(m-1)} of the first, so that ten are enough.
_NEAR, _TERMS = 4, 10
# exp(-745) is 0: nothing is carried further.
_UNDERFLOW = 745.0


def softplus_sums(a: Tensor, b: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """With u_ij = (b_j - a_i) / T: sum_ij softplus(u_ij), sum_j sigmoid(u_ij) `(N,)` and sum_i sigmoid(u_ij) `(M,)`.

    a `(N,)` and b `(M,)`: float64 and finite. The relative error of each number is around 1e-14.
    """
    mantissa, exponent = math.frexp(temperature)
    omega = 1 / mantissa
    # Division by a power of two is exact, and so are the parts before and after the point, however large the scores.
    cells = torch.cat((a, b)) * 2.0**-exponent
    floor = cells.floor()
    box, index = floor.unique(return_inverse=True)
    place = 2 * (cells - floor) - 1
    n, boxes = len(a), len(box)
    of_a, of_b = (_moments(*part, boxes) for part in ((place[:n], index[:n]), (place[n:], index[n:])))
    soft, pull = _fields(box, of_b, omega)
    mirrored = _mirror(_fields(_mirror(box), _mirror(of_a), omega)[1])
    return (of_a * soft).sum(), _evaluate(pull, place[:n], index[:n]), _evaluate(mirrored, place[n:], index[n:])


def _fields(box: Tensor, moments: Tensor, omega: float) -> tuple[Tensor, Tensor]:
    """The fields of softplus(u) and of its slope sigmoid(u), summed over the sources; u = source - target."""
    soft, pull = _near(box, moments, omega)
    order = torch.arange(1, _TERMS + 1, dtype=box.dtype, device=box.device)
    series = -((-1) ** order)[:, None]
    waves = _coefficients(torch.exp(omega / 2 * order[:, None] * _nodes(box)))
    # Sources far below the target: softplus(u) = sum_m (-1)^{m+1} e^{mu} / m.
    far, _, _ = _far(box, moments, waves, omega)
    soft += _parity(box) * (waves.T @ (series / order[:, None] * far))
    pull += _parity(box) * (waves.T @ (series * far))
    # Far above, in the mirror: softplus(u) = u + softplus(-u).
    far, count, distance = (part.flip(-1) for part in _far(_mirror(box), _mirror(moments), waves, omega))
    soft += waves.T @ (series / order[:, None] * far)
    pull -= waves.T @ (series * far)
    soft[0] += omega * distance
    soft[1] -= omega * count / 2
    pull[0] += count
    return soft, pull


def _near(box: Tensor, moments: Tensor, omega: float) -> tuple[Tensor, Tensor]:
    """The part of the fields that comes from boxes at most _NEAR away."""
    soft, pull = torch.zeros_like(moments), torch.zeros_like(moments)
    nodes = _nodes(box)
    for d in range(-_NEAR, _NEAR + 1):
        at = torch.searchsorted(box, box + d).clamp(max=len(box) - 1)
        hit = box[at] - box == d
        u = omega * (d + (nodes[None, :] - nodes[:, None]) / 2)
        for field, kernel in ((soft, softplus), (pull, torch.sigmoid)):
            matrix = _coefficients(_coefficients(kernel(u)).T).T
            field[:, hit] += matrix @ moments[:, at[hit]]
    return soft, pull


def _far(box: Tensor, moments: Tensor, waves: Tensor, omega: float) -> tuple[Tensor, Tensor, Tensor]:
    """Over the sources more than _NEAR boxes below each box: sum e^{mu} `(_TERMS, B)`, their number, sum of distances.

    The distances are in boxes, and all are seen from the middle of the target's box.
    """
    boxes = len(box)
    total = waves @ moments
    order = torch.arange(1, _TERMS + 1, dtype=box.dtype, device=box.device)[:, None]
    stride = 1
    # After each round a box's total reaches twice as many boxes down.
    while stride < boxes and stride * omega < _UNDERFLOW:
        carried = total[:, :-stride] * torch.exp(-omega * order * (box[stride:] - box[:-stride]))
        total = torch.cat((total[:, :stride], total[:, stride:] + carried), dim=1)
        stride *= 2
    count = moments[0].cumsum(0)
    gaps = torch.cat((box.new_zeros(1), count[:-1] * box.diff())).cumsum(0)
    place = moments[1].cumsum(0)
    # The last far box: compared by differences, which are exact where box - 4 may not be a float.
    here = torch.arange(boxes, device=box.device)
    last = here - 1
    for step in range(1, _NEAR + 1):
        before = (here - step).clamp(min=0)
        last = torch.where(box - box[before] <= _NEAR, here - step - 1, last)
    some, last = last >= 0, last.clamp(min=0)
    gap = box - box[last]
    distance = gaps[last] + count[last] * gap - place[last] / 2
    far = total[:, last] * torch.exp(-omega * order * gap)
    return far * some, count[last] * some, distance * some


def _moments(place: Tensor, index: Tensor, boxes: int) -> Tensor:
    return torch.stack([torch.bincount(index, weights=t, minlength=boxes) for t in _chebyshev(place)])


def _evaluate(field: Tensor, place: Tensor, index: Tensor) -> Tensor:
    value = torch.zeros_like(place)
    for coefficient, t in zip(field, _chebyshev(place), strict=True):
        value += coefficient[index] * t
    return value


def _chebyshev(x: Tensor) -> Iterator[Tensor]:
    """T_0(x), T_1(x), ... one at a time, so that memory stays O(N)."""
    before, now = x, torch.ones_like(x)
    for _ in range(_DEGREES):
        yield now
        before, now = now, 2 * x * now - before


def _nodes(like: Tensor) -> Tensor:
    angle = (torch.arange(_DEGREES, dtype=like.dtype, device=like.device) + 0.5) * (math.pi / _DEGREES)
    return angle.cos()


def _coefficients(values: Tensor) -> Tensor:
    """Chebyshev coefficients of functions given by their values at the nodes, along the last dimension."""
    transform = torch.stack(list(_chebyshev(_nodes(values)))) * (2 / _DEGREES)
    transform[0] /= 2
    return values @ transform.T


def _parity(like: Tensor) -> Tensor:
    return (-1.0) ** torch.arange(_DEGREES, dtype=like.dtype, device=like.device)[:, None]


def _mirror(part: Tensor) -> Tensor:
    """Box numbers, or moments or a field, of the line turned around."""
    return -part.flip(0) if part.dim() == 1 else _parity(part) * part.flip(1)
