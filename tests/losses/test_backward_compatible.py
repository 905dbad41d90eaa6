"""BT²'s loss: its terms by torch's own functions, their ranges, what is constant, bad input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lossbook.losses import backward_compatible


def arguments(n: int = 6, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    return {
        "logits": draw(n, 4),
        "target": torch.randint(4, (n,), generator=generator),
        "features": draw(n, 5),
        "new_features": draw(n, 5),
        "compatible": draw(n, 3),
        "old_features": draw(n, 3),
    }


def test_terms_and_total() -> None:
    a = arguments()
    W = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    terms = backward_compatible(**a, old_weight=W, new_factor=2.0, old_factor=3.0, classifier_factor=5.0)
    torch.testing.assert_close(terms.classification, F.cross_entropy(a["logits"], a["target"]))
    unit = {name: F.normalize(a[name], dim=1) for name in ("features", "new_features", "compatible", "old_features")}
    torch.testing.assert_close(terms.to_new, 1 - (unit["features"] * unit["new_features"]).sum(1).mean())
    torch.testing.assert_close(terms.to_old, 1 - (unit["compatible"] * unit["old_features"]).sum(1).mean())
    torch.testing.assert_close(terms.old_classifier, F.cross_entropy(unit["compatible"] @ W.T, a["target"]))
    total = terms.classification + 2 * terms.to_new + 3 * terms.to_old + 5 * terms.old_classifier
    torch.testing.assert_close(terms.total, total)
    plain = backward_compatible(**a)
    assert plain.old_classifier == 0
    torch.testing.assert_close(plain.total, plain.classification + plain.to_new + plain.to_old)


def test_limits() -> None:
    a = arguments()
    same = a | {"new_features": 3 * a["features"], "old_features": -2 * a["compatible"]}
    terms = backward_compatible(**same)
    torch.testing.assert_close(terms.to_new.item(), 0.0, rtol=0, atol=1e-12)
    torch.testing.assert_close(terms.to_old.item(), 2.0)


def test_classes_unknown_to_the_old_classifier_count_for_nothing() -> None:
    a = arguments()
    a["target"] = torch.tensor([0, 3, 1, 2, 0, 1])
    W = torch.eye(3, dtype=torch.float64)[:2]
    known = [0, 2, 4, 5]
    expected = F.cross_entropy(F.normalize(a["compatible"][known], dim=1) @ W.T, a["target"][known])
    torch.testing.assert_close(backward_compatible(**a, old_weight=W).old_classifier, expected)
    a["target"] = torch.full((6,), 3)
    assert backward_compatible(**a, old_weight=W).old_classifier == 0


def test_gradcheck_and_constants() -> None:
    a = arguments()
    W = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    learned = ("logits", "features", "compatible")
    constant = ("new_features", "old_features")
    for name in (*learned, *constant):
        a[name] = a[name].requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda *parts: backward_compatible(**(a | dict(zip(learned, parts, strict=True))), old_weight=W).total,
        [a[name] for name in learned],
    )
    total = backward_compatible(**a, old_weight=W).total
    slopes = torch.autograd.grad(total, [a[name] for name in constant] + [W], allow_unused=True)
    assert slopes == (None, None, None)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"features": torch.zeros(5, 5)},
            r"features must be floating point of shape \(6, d\), one row for each row of",
        ),
        ({"old_features": torch.zeros(6, 4)}, r"old_features must have the shape of compatible, \(6, 3\), but has"),
        ({"compatible": torch.zeros(6, 3).long()}, "compatible must be floating point"),
        ({"new_features": torch.full((6, 5), torch.nan)}, r"new_features\[0, 0\] is nan"),
        ({"old_weight": torch.zeros(5, 3)}, r"old_weight must have shape \(K_old, 3\) with 1 <= K_old <= 4"),
        ({"old_factor": -1.0}, r"old_factor must lie in \[0, inf\)"),
        ({"target": torch.full((6,), 4)}, "target has label 4, but logits have 4 classes"),
    ],
)
def test_bad_input_is_refused_by_name(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        backward_compatible(**(arguments() | change))
    with pytest.raises(TypeError, match=r"compatible must be a torch\.Tensor, but is list"):
        backward_compatible(**(arguments() | {"compatible": [0.0]}))
