from __future__ import annotations

import copy

import pytest
import torch

from lossbook import losses


def test_criterion_is_the_function() -> None:
    logits, target = torch.randn(5, 3), torch.randint(3, (5,))
    weight = torch.tensor([1.0, 2.0, 3.0])
    criterion = losses.Criterion(losses.comp_sum, tau=1.5, weight=weight, reduction="sum")
    expected = losses.comp_sum(logits, target, tau=1.5, weight=weight, reduction="sum")
    torch.testing.assert_close(criterion(logits, target), expected)
    torch.testing.assert_close(copy.deepcopy(criterion)(logits, target), expected)
    assert repr(criterion) == "Criterion(comp_sum, tau=1.5, reduction=sum, weight=tensor(3,))"


def test_weight_moves_with_the_module() -> None:
    criterion = losses.Criterion(losses.mae, weight=torch.ones(3)).to(torch.float64)
    assert criterion.get_buffer("weight").dtype == torch.float64
    assert list(criterion.parameters()) == []


def test_unknown_parameter_is_refused_at_construction() -> None:
    with pytest.raises(TypeError, match="comp_sum has no parameter 'gamma'; it has tau, weight"):
        losses.Criterion(losses.comp_sum, gamma=2.0)
    with pytest.raises(TypeError, match="loss must be a function"):
        losses.Criterion("mae")  # type: ignore[arg-type]
