"""Basis transformation: what an orthonormal change of basis keeps, before and after training; bad input."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import cosine_similarity, normalize

from lossbook.layers import BasisTransformation


def inputs(n: int = 20, dim: int = 6, extra: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(n, d, dtype=torch.float64, generator=generator) for d in (dim, extra)]
    return normalize(draws[0], dim=1), normalize(draws[1], dim=1)


def layer(extra: int = 3, seed: int = 0, scale: float = 3.0) -> BasisTransformation:
    torch.manual_seed(seed)
    return BasisTransformation(6, extra, scale=scale, dtype=torch.float64)


@pytest.mark.parametrize("extra", [0, 1, 3, 6])
def test_keeps_lengths_angles_and_everything_else(extra: int) -> None:
    f, e = inputs(extra=extra)
    f = 2 * f
    net = layer(extra, scale=1.7)
    new = net(f, e)
    assert new.shape == (20, 6 + extra)
    torch.testing.assert_close(new @ new.T, e @ e.T + 1.7**2 * f @ f.T)
    back_f, back_e = net.inverse(new)
    torch.testing.assert_close(back_f, f)
    torch.testing.assert_close(back_e, e)


def test_is_the_formula() -> None:
    f, e = inputs()
    net = layer()
    P, Q = net.P.weight, net.Q.weight
    u = torch.cat((e, 3 * f @ P.T), dim=1)
    torch.testing.assert_close(net(f, e), torch.cat((u[:, :6] @ Q.T, u[:, 6:]), dim=1))


def test_stays_orthonormal_and_exact_while_it_learns_the_old_space() -> None:
    """An old space that is a rotation of the new one is matched by P and Q alone; nothing of f is lost."""
    f, e = inputs(50, extra=0)
    old = f @ torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(3)).double()).Q
    # A rotation that reflects is out of reach of a connected group: flip one axis to give P Q the right sign.
    net = layer(extra=0)
    turn = torch.linalg.lstsq(f, old).solution
    if torch.linalg.det(turn) * torch.linalg.det(net.P.weight @ net.Q.weight) < 0:
        old = old * torch.tensor([-1.0, 1, 1, 1, 1, 1], dtype=torch.float64)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        (1 - cosine_similarity(net(f, e), old, dim=1).mean()).backward()
        optimizer.step()
    assert cosine_similarity(net(f, e), old, dim=1).min() > 0.999
    for matrix in (net.P.weight, net.Q.weight):
        torch.testing.assert_close(matrix.T @ matrix, torch.eye(6).double(), rtol=0, atol=1e-10)
    torch.testing.assert_close(net(f, e).norm(dim=1), 3 * f.norm(dim=1))


def test_float32_after_training() -> None:
    """Pulled towards an old space that it cannot reach, hundreds of steps long."""
    torch.manual_seed(0)
    net = BasisTransformation(16, 8)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    f, e = (part.float() for part in inputs(dim=16, extra=8))
    old = inputs(dim=16, seed=5)[0].float()
    before = cosine_similarity(net(f, e)[:, :16], old, dim=1).mean()
    for _ in range(200):
        optimizer.zero_grad()
        (1 - cosine_similarity(net(f, e)[:, :16], old, dim=1).mean()).backward()
        optimizer.step()
    assert cosine_similarity(net(f, e)[:, :16], old, dim=1).mean() > before + 0.2
    for matrix in (net.P.weight, net.Q.weight):
        assert (matrix.T @ matrix - torch.eye(16)).abs().max() < 1e-5
    torch.testing.assert_close(net(f, e).norm(dim=1), torch.full((20,), 10.0).sqrt())


def test_gradcheck_and_stacked_models() -> None:
    f, e = inputs(4)
    net = layer()
    assert torch.autograd.gradcheck(net, (f.requires_grad_(True), e.requires_grad_(True)))
    nets = [layer(seed=seed) for seed in (0, 1)]
    parameters, buffers = stack_module_state(nets)
    base = copy.deepcopy(nets[0])
    stacked = vmap(lambda p, b: functional_call(base, (p, b), (f, e)))(parameters, buffers)
    torch.testing.assert_close(stacked, torch.stack([net(f, e) for net in nets]))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: BasisTransformation(4, 5), "extra must be a whole number of at least 0 and at most 4, but is 5"),
        (lambda: BasisTransformation(0, 0), "dim must be a whole number of at least 1"),
        (lambda: BasisTransformation(4, 2, scale=0.0), r"scale must lie in \(0, inf\)"),
        (lambda: layer()(torch.zeros(2, 5).double(), torch.zeros(2, 3)), r"features must be floating .* \(N, 6\)"),
        (lambda: layer()(torch.zeros(2, 6).double(), torch.zeros(2, 4)), r"extra must be floating .* \(N, 3\)"),
        (lambda: layer()(torch.zeros(2, 6).double(), torch.zeros(3, 3)), "extra must have 2 rows, as features have"),
        (lambda: layer().inverse(torch.zeros(2, 6)), r"embedding must be floating point of shape \(N, 9\)"),
    ],
)
def test_bad_input_is_refused_by_name(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()
    with pytest.raises(TypeError, match=r"features must be a torch\.Tensor, but is list"):
        layer()([0.0], torch.zeros(1, 3))
