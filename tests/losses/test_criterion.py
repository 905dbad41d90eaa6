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


def test_a_learned_parameter_is_found_by_the_optimiser() -> None:
    criterion = losses.Criterion(losses.nt_xent, temperature=torch.nn.Parameter(torch.tensor(0.5)))
    (temperature,) = criterion.parameters()
    z1, z2 = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    criterion(z1, z2).backward()
    assert temperature.grad is not None and temperature.grad != 0
    torch.testing.assert_close(criterion(z1, z2), losses.nt_xent(z1, z2, temperature=0.5))
    assert repr(criterion) == "Criterion(nt_xent, temperature=tensor())"
