"""InfoNCE: by hand, the peer, what it cannot see, bad input."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from lossbook.losses import info_nce


def similarities(b: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(b, b, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_by_hand_and_peer() -> None:
    sim = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    rows = [math.log(1 + math.exp(-4.0)), math.log(1 + math.exp(-2.0))]
    torch.testing.assert_close(
        info_nce(sim, temperature=0.5, reduction="none"), torch.tensor(rows, dtype=torch.float64)
    )
    sim = similarities()
    torch.testing.assert_close(info_nce(sim, temperature=0.3), F.cross_entropy(sim / 0.3, torch.arange(6)))
    torch.testing.assert_close(info_nce(torch.zeros(5, 5)), torch.tensor(math.log(5)))


def test_a_number_added_to_a_row_changes_nothing() -> None:
    sim = similarities()
    offset = 100 * torch.arange(6.0, dtype=torch.float64)[:, None]
    torch.testing.assert_close(info_nce(sim + offset), info_nce(sim))
    assert (info_nce(sim + offset.T) - info_nce(sim)).abs() > 1


def test_gradcheck_and_vmap() -> None:
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda s, t: info_nce(s, temperature=t), (similarities().requires_grad_(True), temperature)
    )
    stacked = torch.stack([similarities(seed=1), similarities(seed=2)])
    torch.testing.assert_close(vmap(grad(info_nce))(stacked), torch.stack([grad(info_nce)(s) for s in stacked]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_before_the_division(dtype: torch.dtype) -> None:
    """1e4 / 0.05 does not fit a float16."""
    sim = (1e4 * torch.eye(3)).flip(0).to(dtype)
    value = info_nce(sim / 1e4, temperature=0.05)
    assert value.dtype == dtype
    torch.testing.assert_close(value, info_nce(sim.double() / 1e4, temperature=0.05).to(dtype), rtol=0.01, atol=0)
    assert info_nce(sim[:, [2, 1, 0]], temperature=0.05) == 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sim": torch.zeros(2, 3)}, r"sim must have shape \(B, B\), a row a query, but has shape \(2, 3\)"),
        ({"sim": torch.zeros(0, 0)}, r"sim must have shape \(B, B\)"),
        ({"sim": torch.zeros(2, 2, dtype=torch.long)}, "sim must be floating point"),
        ({"sim": torch.tensor([[0.0, float("nan")], [0.0, 0.0]])}, r"sim\[0, 1\] is nan"),
        ({"temperature": 0.0}, r"temperature must lie in \(0, inf\)"),
        ({"reduction": "average"}, "reduction must be"),
    ],
)
def test_bad_input_is_refused_by_name(change: dict, sentence: str) -> None:
    arguments = {"sim": torch.zeros(2, 2), **change}
    with pytest.raises(ValueError, match=sentence):
        info_nce(**arguments)


def test_not_a_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match=r"sim must be a torch\.Tensor, but is list"):
        info_nce([[0.0]])
