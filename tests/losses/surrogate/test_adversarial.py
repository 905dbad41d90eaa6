"""The smooth adversarial comp-sum loss: by hand, its limits, and the upper bound that it is made for."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook.losses import comp_sum, smooth_adversarial_comp_sum


def batch(seed: int = 0, n: int = 6, c: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    f, moved = 2 * torch.randn(2, n, c, dtype=torch.float64, generator=generator)
    return f, moved, torch.randint(c, (n,), generator=generator)


def test_by_hand() -> None:
    """Three classes, y = 0: D = (log 2, log 4) -> D' = (log 2 - 3, log 4 - 4), so the shift is 5."""
    f = torch.tensor([[0.0, -math.log(2), -math.log(4)]], dtype=torch.float64)
    adv = f + torch.tensor([[1.0, 4.0, 5.0]])
    y = torch.tensor([0])
    assert smooth_adversarial_comp_sum(f, adv, y, nu=0.3).item() == pytest.approx(math.log(1.75) + 1.5)
    assert smooth_adversarial_comp_sum(f, adv, y, tau=0.0, nu=2.0).item() == pytest.approx(0.75 + 10)
    # rho = 1/2 squares the exponentials: u = 1/4 + 1/16
    assert smooth_adversarial_comp_sum(f, adv, y, tau=0.0, rho=0.5, nu=0.0).item() == pytest.approx(0.3125)


@pytest.mark.parametrize("tau", [0.0, 0.7, 1.0, 1.5, 2.0])
def test_without_a_shift_it_is_comp_sum(tau: float) -> None:
    f, moved, y = batch()
    torch.testing.assert_close(smooth_adversarial_comp_sum(f, f + 3.0, y, tau=tau, nu=5.0), comp_sum(f, y, tau=tau))
    torch.testing.assert_close(
        smooth_adversarial_comp_sum(f, moved, y, tau=tau, rho=2.0, nu=0.0), comp_sum(f / 2, y, tau=tau)
    )


def test_gradients() -> None:
    f, moved, y = batch()
    f.requires_grad_(True)
    moved.requires_grad_(True)
    for tau in (0.5, 1.0, 1.5):
        assert torch.autograd.gradcheck(
            lambda a, b, t=tau: smooth_adversarial_comp_sum(a, b, y, tau=t, rho=0.7), (f, moved)
        )
    # At x' = x the norm has no gradient; its share must be 0 and not NaN.
    (at_x,) = torch.autograd.grad(smooth_adversarial_comp_sum(f, f.detach(), y, nu=4.0), f)
    torch.testing.assert_close(at_x, torch.autograd.grad(comp_sum(f, y), f)[0])


@settings(max_examples=80, deadline=None)
@given(
    tau=st.floats(0, 3),
    rho=st.floats(0.2, 5),
    c=st.integers(2, 10),
    spread=st.floats(0.01, 3),
    seed=st.integers(0, 9999),
)
def test_upper_bound_of_the_adversarial_margin_loss(tau, rho, c, spread, seed) -> None:
    """nu = sqrt(C - 1) / rho: at the farthest of many points the loss exceeds the rho-margin loss of every one."""
    generator = torch.Generator().manual_seed(seed)
    n, points = 20, 30
    f = 3 * torch.randn(n, c, dtype=torch.float64, generator=generator)
    y = torch.randint(c, (n,), generator=generator)
    near = f + spread * torch.randn(points, n, c, dtype=torch.float64, generator=generator)

    def differences(scores):
        return scores.gather(-1, y[:, None].expand(*scores.shape[:-1], 1)) - scores

    away = (differences(near) - differences(f)).norm(dim=2)
    farthest = near[away.argmax(dim=0), torch.arange(n)]
    loss = smooth_adversarial_comp_sum(f, farthest, y, tau=tau, rho=rho, nu=math.sqrt(c - 1) / rho, reduction="none")

    def phi_tau(u):
        return torch.log1p(u) if abs(tau - 1) < 1e-6 else torch.expm1((1 - tau) * torch.log1p(u)) / (1 - tau)

    ramps = (1 - differences(near) / rho).clamp(0, 1).sum(dim=2) - 1  # the term k = y is always 1
    margin_loss = phi_tau(ramps).amax(dim=0)
    assert (loss >= margin_loss - 1e-9).all()
    fooled = (differences(near).scatter(2, y[None, :, None].expand(points, n, 1), 1.0) <= 0).any(dim=2).any(dim=0)
    assert (loss / phi_tau(torch.tensor(1.0, dtype=torch.float64)) >= fooled.double() - 1e-9).all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tau": -0.1}, "tau must lie in"),
        ({"rho": 0.0}, "rho must lie in"),
        ({"nu": -1.0}, "nu must lie in"),
        ({"logits_adv": torch.zeros(6, 4)}, "logits_adv must be like logits"),
        ({"logits_adv": torch.zeros(6, 5)}, "logits_adv must be like logits"),
        ({"logits_adv": torch.full((6, 5), float("nan")).double()}, r"logits_adv\[0, 0\] is nan"),
    ],
)
def test_bad_input_is_refused_by_name(change, sentence) -> None:
    f, moved, y = batch()
    arguments = {"logits_adv": moved, **change}
    with pytest.raises(ValueError, match=sentence):
        smooth_adversarial_comp_sum(f, arguments.pop("logits_adv"), y, **arguments)
    with pytest.raises(TypeError, match="logits_adv must be a torch.Tensor"):
        smooth_adversarial_comp_sum(f, moved.tolist(), y)
