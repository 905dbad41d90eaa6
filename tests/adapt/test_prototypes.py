"""Prototypes, TEEN's calibration and the classifier that grows: closed forms, the paper's limits, bad input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from lossbook.adapt import PrototypeClassifier, prototypes, teen_calibrate
from lossbook.metrics.collapse import class_means
from lossbook.theory import simplex_etf


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_compute_by_hand() -> None:
    features = torch.tensor([[3.0, 0.0], [0.0, 0.5], [0.0, -2.0], [0.0, 0.0]])
    target = torch.tensor([0, 0, 1, 1])
    half = 0.5**0.5
    torch.testing.assert_close(prototypes.compute(features, target), torch.tensor([[half, half], [0.0, -1.0]]))
    plain = prototypes.compute(features, target, normalized=False)
    torch.testing.assert_close(plain, torch.tensor([[1.5, 0.25], [0.0, -1.0]]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_plain_prototypes_are_class_means(dtype: torch.dtype) -> None:
    features, target = normal(40, 5).to(dtype), torch.arange(40) % 4
    plain = prototypes.compute(features, target, num_classes=4, normalized=False)
    assert plain.dtype == dtype
    torch.testing.assert_close(plain, class_means(features, target).to(dtype))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100))
def test_unit_prototypes_ignore_lengths_and_order(seed: int, scale: float) -> None:
    features, target = normal(30, 4, seed=seed), torch.arange(30) % 3
    found = prototypes.compute(features, target)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3, dtype=torch.float64))
    lengths = scale * (1 + normal(30, 1, seed=seed + 1).abs())
    torch.testing.assert_close(prototypes.compute(lengths * features, target), found)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(prototypes.compute(features[order], target[order]), found)


@pytest.mark.parametrize("normalized", [True, False])
def test_compute_differentiates(normalized: bool) -> None:
    target = torch.tensor([0, 1, 1, 0, 1])
    features = normal(5, 3).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda h: prototypes.compute(h, target, normalized=normalized), features)
    dead = torch.cat((features.detach(), torch.zeros(1, 3))).requires_grad_(True)
    value = prototypes.compute(dead, torch.tensor([0, 1, 1, 0, 1, 0]), normalized=normalized).sum()
    assert torch.autograd.grad(value, dead)[0].abs().max() < 100, "a dead feature does not end a training"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"features": torch.ones(4)}, r"features must be floating point of shape \(N, d\), but is torch.float32"),
        ({"features": torch.ones(4, 2).long()}, "features must be floating point"),
        ({"features": torch.full((4, 2), float("nan"))}, r"features\[0, 0\] is nan"),
        ({"target": torch.tensor([0, 0, 2, 2])}, "class 1 has no example"),
        ({"target": torch.tensor([0, 0, 1, -1])}, "target has label -1, but labels start at 0"),
        ({"target": torch.tensor([0, 0, 1])}, "target must hold one integer label for each of the 4 rows"),
        ({"target": torch.tensor([0.0, 0, 1, 1])}, "target must hold one integer label"),
        ({"num_classes": 3}, "class 2 has no example"),
        ({"num_classes": 1}, "target has label 1, but there are 1 classes"),
        ({"num_classes": 0}, "num_classes must be a whole number of at least 1"),
        ({"features": torch.tensor([[1.0, 0], [0, 1], [2, 1], [-4, -2]])}, "features of class 1 cancel"),
    ],
)
def test_compute_refuses(change: dict, sentence: str) -> None:
    arguments = {"features": torch.eye(4), "target": torch.tensor([0, 0, 1, 1]), **change}
    with pytest.raises(ValueError, match=sentence):
        prototypes.compute(**arguments)


def test_teen_limits() -> None:
    """alpha = 0 keeps directions, tau = 0 takes the mean base class, a large tau the nearest one."""
    base, new = normal(5, 6), normal(3, 6, seed=1)
    b, p = normalize(base, dim=1), normalize(new, dim=1)
    torch.testing.assert_close(teen_calibrate(base, new, weight=0.0), p)
    mean = normalize(b.mean(dim=0), dim=0).expand(3, 6)
    torch.testing.assert_close(teen_calibrate(base, new, temperature=0.0, weight=1.0), mean)
    nearest = b[(p @ b.T).argmax(dim=1)]
    torch.testing.assert_close(teen_calibrate(base, new, temperature=1e6, weight=1.0), nearest)
    halfway = teen_calibrate(base, new, temperature=1e6, weight=0.3)
    torch.testing.assert_close(halfway, 0.7 * p + 0.3 * nearest)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), weight=st.floats(0, 1), temperature=st.floats(0, 50))
def test_teen_reads_directions_and_turns_with_the_space(seed: int, weight: float, temperature: float) -> None:
    base, new = normal(4, 5, seed=seed), normal(2, 5, seed=seed + 1)
    found = teen_calibrate(base, new, weight=weight, temperature=temperature)
    assert (found.norm(dim=1) <= 1 + 1e-9).all()
    rescaled = teen_calibrate(3 * base, 0.1 * new, weight=weight, temperature=temperature)
    torch.testing.assert_close(rescaled, found)
    turn = torch.linalg.qr(normal(5, 5, seed=seed + 2)).Q
    torch.testing.assert_close(
        teen_calibrate(base @ turn, new @ turn, weight=weight, temperature=temperature), found @ turn
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_teen_of_base_classes_that_cancel(dtype: torch.dtype) -> None:
    """The mean of an ETF is 0: what rounding leaves of it is not blown up to length one."""
    base = simplex_etf(6, 8, generator=torch.Generator().manual_seed(0), dtype=dtype)
    moved = teen_calibrate(base, base[:1], temperature=0.0, weight=0.5)
    torch.testing.assert_close(moved, base[:1] / 2, rtol=0, atol=1e-8 if dtype == torch.float64 else 0.1)


def test_classifier_is_the_cosine_of_all_classes_so_far() -> None:
    base, first, second, features = normal(3, 4), normal(2, 4, seed=1), normal(2, 4, seed=2), normal(10, 4, seed=3)
    classifier = PrototypeClassifier(scale=5.0).add_classes(base)
    classifier.add_classes(first, weight=0.5).add_classes(second, weight=0.5, temperature=8.0)
    # Both sessions are calibrated to the base classes, the second one not to the first.
    rows = torch.cat((base, teen_calibrate(base, first), teen_calibrate(base, second, temperature=8.0)))
    torch.testing.assert_close(classifier.prototypes, rows)
    cosine = torch.nn.functional.cosine_similarity(features[:, None], rows[None], dim=2)
    torch.testing.assert_close(classifier(features), 5 * cosine)
    assert not list(classifier.parameters())


def test_classifier_is_saved_with_its_classes() -> None:
    classifier = PrototypeClassifier().add_classes(normal(3, 4)).add_classes(normal(1, 4, seed=1))
    fresh = PrototypeClassifier()
    fresh.load_state_dict(classifier.state_dict())
    assert torch.equal(fresh.prototypes, classifier.prototypes)
    new = normal(2, 4, seed=2)
    torch.testing.assert_close(
        fresh.add_classes(new, weight=0.5).prototypes, classifier.add_classes(new, weight=0.5).prototypes
    )
    assert int(fresh.num_base) == 3


def test_classifier_keeps_its_own_copy() -> None:
    rows = normal(3, 4)
    classifier = PrototypeClassifier().add_classes(rows)
    rows.zero_()
    assert classifier.prototypes.any()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda c: PrototypeClassifier()(torch.ones(1, 4)), "the classifier has no classes yet"),
        (lambda c: PrototypeClassifier(scale=0.0), "scale must lie in"),
        (lambda c: PrototypeClassifier().add_classes(torch.ones(2, 4), weight=0.5), "weight must be 0 for the first"),
        (lambda c: c.add_classes(torch.ones(2, 3)), r"prototypes must be floating point of shape \(K, 4\)"),
        (lambda c: c.add_classes(torch.zeros(2, 4)), r"prototypes\[0\] is zero"),
        (lambda c: c.add_classes(torch.ones(2, 4), weight=1.5), r"weight must lie in \[0, 1\], but is 1.5"),
        (lambda c: c.add_classes(torch.ones(2, 4), temperature=-1.0), "temperature must lie in"),
        (lambda c: c(torch.ones(2, 3)), r"features must have shape \(\.\.\., 4\), but have shape \(2, 3\)"),
        (lambda c: teen_calibrate(torch.ones(2, 4), torch.ones(2, 3)), "new_prototypes must be floating point"),
        (lambda c: teen_calibrate(torch.zeros(2, 4), torch.ones(2, 4)), r"base_prototypes\[0\] is zero"),
        (lambda c: teen_calibrate(torch.ones(2, 4), torch.ones(2, 4), weight=-0.1), "weight must lie in"),
        (lambda c: teen_calibrate(torch.ones(2, 4), torch.ones(2, 4), temperature=float("inf")), "temperature must"),
    ],
)
def test_bad_input_is_refused(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call(PrototypeClassifier().add_classes(normal(3, 4)))
