"""`sgld`: sample networks from their posterior by gradient steps with noise, many chains at once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from lossbook import checks
from lossbook.train.settings import EVALUATION_ROWS, Loss, function, real


@dataclass(frozen=True, repr=False)
class PosteriorSamples:
    """What `sgld` kept. parameters: name -> (chains, kept, ...), the last one kept being the last iterate."""

    parameters: dict[str, Tensor]
    _model: nn.Module

    def __repr__(self) -> str:
        chains, kept = next(iter(self.parameters.values())).shape[:2]
        return f"PosteriorSamples({chains} chains of {kept} samples)"

    @torch.no_grad()
    def outputs(self, x: Tensor) -> Tensor:
        """What each sample answers, (chains, kept, N, ...). The average of its softmax is the mixture's prediction."""
        return vmap(vmap(lambda theta: functional_call(self._model, theta, (x,))))(self.parameters)


def sgld(
    model: nn.Module,
    loss: Loss,
    data: Sequence[Any],
    *,
    lr: float,
    steps: int,
    burn_in: int,
    prior_std: float = 1.0,
    batch_size: int | None = None,
    thin: int = 1,
    chains: int = 1,
    seed: int = 0,
) -> PosteriorSamples:
    """Stochastic gradient Langevin dynamics: gradient ascent on the log posterior, with noise that keeps it moving.

        θ ← θ + (η/2) ∇ log p(θ | data) + √η ε,    ε ~ N(0, I)
        log p(θ | data) = -N · loss(model_θ(x), y) - |θ|²/(2 prior_std²) + const

    As η → 0 the visited θ are a sample of the posterior. At a finite η they are spread more widely: for a Gaussian
    posterior with precision h the stationary variance is 1/(h (1 - η h/4)); above η = 4/h the iteration explodes. With
    batches, N times the batch's mean stands in for the sum, and its own noise comes on top.

    Args:
        model: maps x (N, ...) to outputs; used in evaluation mode and not changed. Every chain starts at its weights.
        loss: `loss(outputs, y)` -> scalar, the *mean* negative log-likelihood of the rows in nats.
        data: x (N, ...) and y (N, ...), the first two entries; on the model's device.
        lr: η > 0.
        steps: of each chain.
        burn_in: steps before the first sample is kept, below steps.
        prior_std: standard deviation of the Gaussian prior of every weight, > 0.
        batch_size: rows a step, drawn without replacement, the same for all chains; None: all.
        thin: keep every so many-th step, counted back from the last.
        chains: independent chains, run as one network by `torch.func.vmap`.
        seed: of noise and batches. torch's global generator stays as it was.

    Raises:
        ValueError, TypeError: an argument is refused.
        FloatingPointError: a chain left the finite numbers.

    Source: Welling, Teh 2011, equation 4, with a constant step.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but is {type(model).__name__}")
    function("loss", loss)
    x, y = data[0], data[1]
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or len(x) != len(y) or len(x) == 0:
        raise ValueError("data must begin with two tensors x and y of the same number of rows, at least one")
    checks.finite("x", x)
    real("lr", lr, positive=True)
    real("prior_std", prior_std, positive=True)
    checks.whole("steps", steps, 1)
    checks.whole("burn_in", burn_in, 0, steps - 1)
    checks.whole("thin", thin, 1, steps - burn_in)
    checks.whole("chains", chains, 1)
    checks.whole("seed", seed, 0)
    if batch_size is not None:
        checks.whole("batch_size", batch_size, 1, len(x))

    network = copy.deepcopy(model).eval()
    # Once outside of vmap, inside which a loss cannot read its labels to refuse them.
    with torch.no_grad():
        for part in zip(x.split(EVALUATION_ROWS), y.split(EVALUATION_ROWS), strict=True):
            value = loss(network(part[0]), part[1])
            if not isinstance(value, Tensor) or value.dim() != 0:
                shape = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"loss must return a scalar tensor (reduction 'mean'), but returns {shape}")
    n, generator = len(x), torch.Generator(x.device).manual_seed(seed)

    def energy(theta: dict[str, Tensor], rows: Tensor, labels: Tensor) -> Tensor:
        square = sum((value.square().sum() for value in theta.values()), torch.zeros((), device=x.device))
        return n * loss(functional_call(network, theta, (rows,)), labels) + square / (2 * prior_std**2)

    gradient = vmap(grad(energy), in_dims=(0, None, None))
    theta = {name: p.detach().expand(chains, *p.shape).clone() for name, p in network.named_parameters()}
    kept = []
    for step in range(1, steps + 1):
        rows = (
            slice(None) if batch_size is None else torch.randperm(n, generator=generator, device=x.device)[:batch_size]
        )
        for name, slope in gradient(theta, x[rows], y[rows]).items():
            noise = torch.randn(slope.shape, generator=generator, device=slope.device, dtype=slope.dtype)
            theta[name] = theta[name] - lr / 2 * slope + lr**0.5 * noise
        if step > burn_in and (steps - step) % thin == 0:
            if not all(bool(torch.isfinite(value.sum())) for value in theta.values()):
                raise FloatingPointError(f"the chains are not finite at step {step}: try a smaller lr")
            kept.append(dict(theta))
    return PosteriorSamples({name: torch.stack([sample[name] for sample in kept], dim=1) for name in theta}, network)
