"""Output of an imagined object detector, for which the calibrated score of every detection is known exactly."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lossbook import checks
from lossbook.data import _checks

_SIDES = (8.0, 24.0)  # of the objects, in pixels
_REACH = 1.5 * _SIDES[1]  # from the centre of the longest object to the end of its box, shifted by its length
_CELL = 2 * _REACH + 8.0  # side of a cell of the grid
_CONCENTRATION = 20.0  # of the Beta distribution of the IoU


class Detections(NamedTuple):
    """N detections and the M objects that are there, over all images; K classes. Boxes are (x1, y1, x2, y2) pixels."""

    boxes: Tensor  #: (N, 4) float64
    scores: Tensor  #: (N,) float64 in [0, 1], miscalibrated
    labels: Tensor  #: (N,) int64
    images: Tensor  #: (N,) int64
    quality: Tensor  #: (N,) float64, q = E[u | score, class]: the calibrated score
    gt_boxes: Tensor  #: (M, 4) float64
    gt_labels: Tensor  #: (M,) int64
    gt_images: Tensor  #: (M,) int64
    bias: Tensor  #: (K,) float64, what the detector adds to the logits of each class

    @property
    def n_gt(self) -> Tensor:
        """(K,) objects of each class."""
        return torch.bincount(self.gt_labels, minlength=len(self.bias))

    def split(self, first: int) -> tuple[Detections, Detections]:
        """Images 0 … first-1, and the rest: to fit a calibrator on the one and judge it on the other."""
        found, true = self.images < first, self.gt_images < first
        return self._rows(found, true), self._rows(~found, ~true)

    def _rows(self, found: Tensor, true: Tensor) -> Detections:
        return Detections(
            boxes=self.boxes[found],
            scores=self.scores[found],
            labels=self.labels[found],
            images=self.images[found],
            quality=self.quality[found],
            gt_boxes=self.gt_boxes[true],
            gt_labels=self.gt_labels[true],
            gt_images=self.gt_images[true],
            bias=self.bias,
        )


def toy_detections(
    n_images: int = 400,
    n_classes: int = 5,
    *,
    miscalibration: float = 2.5,
    bias_spread: float = 1.0,
    zipf: float = 0.0,
    detections_per_image: float = 6.0,
    background_per_image: float = 20.0,
    missed_per_image: float = 0.5,
    seed: int = 0,
) -> Detections:
    """Detections whose expected IoU q is known, and scores that distort it: s = σ(a · logit q + b_k).

    An image holds Poisson many promising detections, logit q ~ N(1, 1.5²), and background, logit q ~ N(-4, 1). A
    detection's class is k with probability ∝ (k + 1)^-zipf. It shows an object with probability q^¾; the object's IoU u
    with it is then Beta distributed with mean q^¼ (and parameters that add up to 20). So E[u] = q, with u = 0 where no
    object is. In addition Poisson many objects are missed.

    Everything in an image has a cell of a grid to itself: the detection's box is the object's, shifted until their IoU
    is u, and boxes of different cells are apart. So a matching at an IoU threshold τ finds exactly the objects with
    u > τ, and a detection is a true positive with probability q^¾ P(Beta > τ), which increases with q.

    The calibrated score of a class, q = σ((logit s - b_k)/a), minimises the expected localisation error (LaECE_0) and
    its order maximises the expected AP. Slope a > 1 exaggerates; biases b_k = bias_spread · ε_k with ε ~ N(0, I) make
    classes differ. With a = 1 and bias_spread = 0 the scores are calibrated. The draws don't depend on either.

    Args:
        n_images: number of images, at least 1.
        n_classes: K, at least 1.
        miscalibration: slope a, positive.
        bias_spread: standard deviation of the biases b_k, at least 0.
        zipf: exponent of the class frequencies in [0, 10]; 0 for equal ones, 1 for a long tail.
        detections_per_image, background_per_image, missed_per_image: means of the Poisson counts, in [0, 1000].
        seed: of all draws.

    Returns:
        Detections, those of an image together, in random order.

    Raises:
        ValueError: an argument is out of its range.
    """
    n_images = checks.whole("n_images", n_images, 1)
    k = checks.whole("n_classes", n_classes, 1)
    checks.parameter("miscalibration", miscalibration, 0, open_low=True)
    checks.parameter("bias_spread", bias_spread, 0)
    zipf = _checks.number("zipf", zipf, 0, 10)
    rates = {
        "detections_per_image": detections_per_image,
        "background_per_image": background_per_image,
        "missed_per_image": missed_per_image,
    }
    generator = torch.Generator().manual_seed(_checks.seed(seed))
    counts = torch.stack([_poisson(name, rate, n_images, generator) for name, rate in rates.items()], dim=1)
    bias = bias_spread * torch.randn(k, generator=generator, dtype=torch.float64)

    # An item is a detection (promising or background) or a missed object. Within an image they are shuffled: an order
    # that knows what is promising would help whoever sorts by scores that are equal.
    kind = torch.arange(3).repeat(n_images).repeat_interleave(counts.flatten())
    n = len(kind)
    image = torch.arange(n_images).repeat_interleave(counts.sum(dim=1))
    kind = kind[(image + torch.rand(n, generator=generator, dtype=torch.float64)).argsort()]
    frequency = torch.arange(1, k + 1, dtype=torch.float64) ** -zipf
    label = torch.multinomial(frequency, n, replacement=True, generator=generator) if n else torch.zeros(0).long()
    noise = torch.randn(n, generator=generator, dtype=torch.float64)
    logit = torch.where(kind == 0, 1 + 1.5 * noise, -4 + noise)
    quality = torch.sigmoid(logit)
    real = (torch.rand(n, generator=generator, dtype=torch.float64) < quality**0.75) | (kind == 2)
    iou = _beta(quality**0.25, generator)

    gt_boxes = _boxes(image, n_images, generator)
    # Two boxes of the same size w, one shifted by δw along a side, overlap with IoU (1 - δ)/(1 + δ).
    shift = (1 - iou) / (1 + iou) * (1 - 2 * torch.randint(2, (n,), generator=generator))
    across = torch.randint(2, (n,), generator=generator)
    side = gt_boxes[:, 2:] - gt_boxes[:, :2]
    step = torch.zeros(n, 2, dtype=torch.float64)
    step[torch.arange(n), across] = shift * side[torch.arange(n), across]
    boxes = gt_boxes + step.repeat(1, 2)
    scores = torch.sigmoid(miscalibration * logit + bias[label])
    items = Detections(boxes, scores, label, image, quality, gt_boxes, label, image, bias)
    return items._rows(kind < 2, real)


def _poisson(name: str, rate: float, n: int, generator: torch.Generator) -> Tensor:
    rate = _checks.number(name, rate, 0, 1000)
    return torch.poisson(torch.full((n,), rate, dtype=torch.float64), generator=generator).long()


def _beta(mean: Tensor, generator: torch.Generator) -> Tensor:
    """Beta(cm, c(1 - m)) draws, c the concentration."""
    gammas = [torch._standard_gamma(_CONCENTRATION * m, generator=generator) for m in (mean, 1 - mean)]
    return gammas[0] / (gammas[0] + gammas[1])


def _boxes(image: Tensor, n_images: int, generator: torch.Generator) -> Tensor:
    """A box an item, in a cell of its image's grid that no other item of that image has."""
    count = torch.bincount(image, minlength=n_images)
    columns = max(1, math.ceil(math.sqrt(int(count.max()))))
    cells = torch.rand(n_images, columns**2, generator=generator).argsort(dim=1)
    cell = cells[image, torch.arange(len(image)) - (count.cumsum(dim=0) - count)[image]]
    corner = _CELL * torch.stack([cell % columns, cell // columns], dim=1).double()
    low, high = _SIDES
    half = (low + (high - low) * torch.rand(len(image), 2, generator=generator, dtype=torch.float64)) / 2
    room = _CELL - 2 * _REACH
    centre = corner + _REACH + room * torch.rand(len(image), 2, generator=generator, dtype=torch.float64)
    return torch.cat([centre - half, centre + half], dim=1)
