"""The cosine classifier: cosines, invariances, its probability bound, a learned scale, saving, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cosine_similarity

from lossbook.layers import CosineClassifier


def layer(**arguments) -> CosineClassifier:
    torch.manual_seed(0)
    return CosineClassifier(5, 3, **arguments)


def test_logits_are_scaled_cosines_of_any_leading_shape() -> None:
    head, features = layer(scale=7.0), torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1))
    expected = 7 * cosine_similarity(features[..., None, :], head.weight, dim=-1)
    torch.testing.assert_close(head(features), expected)
    torch.testing.assert_close(head(100 * features), expected, rtol=1e-5, atol=1e-5)
    assert head(torch.zeros(1, 5)).tolist() == [[0, 0, 0]]


def test_confidence_is_bounded_by_the_scale() -> None:
    head = CosineClassifier(1, 2, scale=1.5)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    top = head(torch.tensor([[1e6]])).softmax(dim=1)[0, 0].item()
    assert top == pytest.approx(1 / (1 + math.exp(-3)))


def test_scale_is_learned_only_if_asked_and_stays_positive() -> None:
    assert [name for name, _ in layer().named_parameters()] == ["weight"]
    head = layer(scale=0.5, learn_scale=True)
    assert head.scale.item() == pytest.approx(0.5)
    features = torch.randn(30, 5, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD([head.log_scale], lr=5.0)
    for _ in range(20):
        # Labels that the vectors deny: the best scale is the smallest one.
        loss = torch.nn.functional.cross_entropy(head(features), head(features).argmin(dim=1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert 0 < head.scale < 0.2


def test_it_is_saved_with_its_scale() -> None:
    saved, fresh = layer(scale=3.0), CosineClassifier(5, 3, scale=9.0)
    fresh.load_state_dict(saved.state_dict())
    assert fresh.scale.item() == pytest.approx(3) and "scale=3" in repr(fresh)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: CosineClassifier(0, 3), "dim must be a whole number of at least 1, but is 0"),
        (lambda: CosineClassifier(5, 1), "num_classes must be a whole number of at least 2, but is 1"),
        (lambda: CosineClassifier(5, 3, scale=0.0), "scale must lie in"),
        (lambda: layer()(torch.ones(2, 4)), r"features must have shape \(\.\.\., 5\), but have shape \(2, 4\)"),
    ],
)
def test_bad_input_is_refused(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()
