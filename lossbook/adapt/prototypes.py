"""Classes as points among frozen features: a new class needs a few examples and no training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from lossbook import checks
from lossbook.layers.cosine import cosine_logits
from lossbook.losses.metric import unit


def compute(features: Tensor, target: Tensor, *, num_classes: int | None = None, normalized: bool = True) -> Tensor:
    """A prototype a class, from the features of its examples (its support).

        p_k = v_k / |v_k|,  v_k = mean over class k of h_i / |h_i|;    with normalized=False the plain mean of h_i

    A feature of length zero adds nothing to the sum of unit vectors. Differentiable, nothing is detached.

    Args:
        features: h `(N, d)`.
        target: `(N,)`, integer labels in [0, K).
        num_classes: K; the largest label plus one if None.
        normalized: divide features and prototypes by their lengths. Prototypical networks and TEEN take plain means.

    Returns:
        `(K, d)`, in the dtype of features.

    Raises:
        TypeError, ValueError: an argument is refused, a class has no example, or its unit vectors cancel, so that it
            has no direction.

    Source: Snell, Swersky, Zemel 2017 (arXiv 1703.05175), the plain means; Pereira et al. 2021 (arXiv 2102.03243).
    """
    checks.matrix("features", features)
    if num_classes is not None:
        num_classes = checks.whole("num_classes", num_classes, 1)
    label = checks.labels("target", target, len(features), num_classes)
    k = int(label.max()) + 1 if num_classes is None else num_classes
    count = torch.bincount(label, minlength=k)
    if (count == 0).any():
        raise ValueError(f"class {int((count == 0).nonzero()[0, 0])} has no example")
    h = features.float() if features.itemsize < 4 else features
    if normalized:
        h = unit(h)
    mean = h.new_zeros(k, h.shape[1]).index_add(0, label, h) / count[:, None]
    if normalized:
        length = mean.norm(dim=1, keepdim=True)
        if (none := length[:, 0] < 100 * torch.finfo(h.dtype).eps).any():
            raise ValueError(f"the features of class {int(none.nonzero()[0, 0])} cancel: they have no mean direction")
        mean = mean / length
    return mean.to(features.dtype)


def teen_calibrate(
    base_prototypes: Tensor,
    new_prototypes: Tensor,
    *,
    temperature: float | Tensor = 16.0,
    weight: float | Tensor = 0.5,
) -> Tensor:
    """TEEN: move the prototype of each new class toward the base classes that it resembles.

        w_cj = softmax_j(tau cos(p_c, b_j)),    delta_c = normalise(sum_j w_cj b_j),
        p'_c = (1 - alpha) p_c + alpha delta_c,    p and b of unit length

    A mean of a few examples is noisy; those of the base classes are not, and the trained features say which of them is
    near. tau = 0 moves all to the mean of the base classes, tau to infinity to the nearest one. p' is not made unit
    again: for a cosine it need not be. No training, and no base example is needed. Where the base prototypes cancel
    in the mean (tau = 0 and an ETF), delta is 0.

    Args:
        base_prototypes: b `(K, d)` of the classes the features were trained on; not new classes of earlier sessions.
        new_prototypes: p `(C, d)`, of any length but zero.
        temperature: tau >= 0; a factor, as in the paper, not a divisor.
        weight: alpha in [0, 1]; 0 changes directions in nothing. The authors take 0.5 for CUB and 0.1 for CIFAR-100.

    Returns:
        p' `(C, d)`, in the dtype of new_prototypes.

    Raises:
        TypeError, ValueError: an argument is refused, or a prototype has length zero.

    Source: Wang, Zhou, Zhang, Zhan, Ye 2023 (arXiv 2312.05229) and its code.
    """
    checks.parameter("temperature", temperature, 0)
    checks.parameter("weight", weight, 0, 1)
    base = _directions("base_prototypes", base_prototypes)
    new = _directions("new_prototypes", new_prototypes, columns=base.shape[1]).to(base.dtype)
    share = (temperature * new @ base.T).softmax(dim=1)
    # A sum this short is what rounding left of nothing.
    delta = normalize(share @ base, dim=1, eps=1e-6)
    return ((1 - weight) * new + weight * delta).to(new_prototypes.dtype)


class PrototypeClassifier(nn.Module):
    """The class of the prototype at the smallest angle, over classes that arrive one session after another.

        z_k = s cos(h, p_k)

    The classes added first are the base classes. Those added later may be calibrated by `teen_calibrate`, toward the
    base classes and never toward each other. Classes are numbered as they arrive. Nothing is trained: the prototypes
    are a buffer, saved and moved with the module.

        classifier = PrototypeClassifier().add_classes(compute(features, target))
        classifier.add_classes(compute(few, labels_from_0), weight=0.5)
        classifier(features).argmax(1)

    Args:
        scale: s > 0; it changes probabilities, not predictions.

    Shapes: features (..., d); logits (..., K) of all classes so far.

    Raises:
        ValueError: an argument is out of range.

    Source: Wang, Zhou, Zhang, Zhan, Ye 2023 (arXiv 2312.05229).
    """

    prototypes: Tensor  #: (K, d)
    num_base: Tensor  #: 0-d, the number of base classes

    def __init__(self, scale: float = 16.0) -> None:
        super().__init__()
        checks.parameter("scale", scale, 0, open_low=True)
        self.scale = float(scale)
        self.register_buffer("prototypes", torch.empty(0, 0))
        self.register_buffer("num_base", torch.zeros((), dtype=torch.int64))

    def add_classes(
        self, prototypes: Tensor, *, weight: float | Tensor = 0.0, temperature: float | Tensor = 16.0
    ) -> PrototypeClassifier:
        """Take in the classes of a session, and return the classifier itself.

        Args:
            prototypes: `(C, d)`, of any length but zero. Constant.
            weight, temperature: of `teen_calibrate`; weight 0 leaves the directions as they are. Base classes have
                nothing to be calibrated to: for them it must be 0.

        Raises:
            TypeError, ValueError: an argument is refused; the sentence names it.
        """
        checks.parameter("weight", weight, 0, 1)
        checks.parameter("temperature", temperature, 0)
        if len(self.prototypes) == 0:
            if float(weight) != 0:
                raise ValueError(f"weight must be 0 for the first classes, the base, but is {float(weight):g}")
            _directions("prototypes", prototypes)
            self.num_base.fill_(len(prototypes))
            self.prototypes = prototypes.detach().clone()
            return self
        _directions("prototypes", prototypes, columns=self.prototypes.shape[1])
        new = prototypes.detach().to(self.prototypes)
        if float(weight) != 0:
            base = self.prototypes[: int(self.num_base)]
            new = teen_calibrate(base, new, temperature=temperature, weight=weight)
        self.prototypes = torch.cat((self.prototypes, new))
        return self

    def forward(self, features: Tensor) -> Tensor:
        """Logits, (..., K)."""
        if len(self.prototypes) == 0:
            raise ValueError("the classifier has no classes yet: add_classes comes first")
        return cosine_logits(features, self.prototypes, self.scale)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # What was saved decides how many classes there are.
        if (saved := state_dict.get(f"{prefix}prototypes")) is not None:
            self.prototypes = torch.empty_like(saved, device=self.prototypes.device)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _directions(name: str, prototypes: Tensor, columns: int | None = None) -> Tensor:
    """Unit vectors in at least float32; refuses one of length zero."""
    checks.matrix(name, prototypes, "(K, d)", columns=columns)
    p = prototypes.float() if prototypes.itemsize < 4 else prototypes
    if checks.can_read(p) and (zero := ~p.any(dim=1)).any():
        raise ValueError(f"{name}[{int(zero.nonzero()[0, 0])}] is zero and has no direction")
    return normalize(p, dim=1)
