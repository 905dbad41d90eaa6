"""R networks as one: stacked weights, one forward and backward pass, an optimiser with numbers for each row."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lossbook.train.parts import State
from lossbook.train.settings import asks_for, batch_order, module_of

if TYPE_CHECKING:
    from lossbook.train.stacked import _Job


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, buffers that state_dict leaves out included."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@dataclass(frozen=True)
class Group:
    """Neighbouring configurations that share a loss and its fixed arguments."""

    key: tuple[Any, ...]
    size: int
    loss: Callable[..., Tensor]
    reads_features: bool

    def __call__(self, logits: Tensor, target: Tensor, features: Tensor, numbers: State) -> Tensor:
        """Losses (G,) of logits (G, B, C), target (G, B), features (G, B, D) and the loss's other arguments (G,)."""

        def one(z: Tensor, y: Tensor, h: Tensor, numbers: State) -> Tensor:
            return self.loss(z, y, **numbers, **({"features": h} if self.reads_features else {}))

        # A loss that draws at random draws for each configuration anew.
        return vmap(one, randomness="different")(logits, target, features, numbers)


class Stack:
    """R networks as one: weights with a leading dimension R, trained on R batches, one for each."""

    def __init__(self, job: _Job, members: list[int]) -> None:
        self.network, self.splits, self.budget, self.row_bytes = job.network, job.splits, job.budget, job.row_bytes
        self.configs = [job.configs[i] for i in members]
        self.settings = self.configs[0].settings
        self.labels = job.labels(members)
        states = [tensors(model) for model in job.models(members)]
        trains = {f"model.{name}" for name, value in states[0].items() if value.requires_grad}
        stacked = {
            f"model.{name}": torch.stack([state[name].detach().to(job.device) for state in states])
            for name in states[0]
        }
        self.fixed = {name: value for name, value in stacked.items() if name not in trains}
        weights = {name: value for name, value in stacked.items() if name in trains}
        # One (R, P) matrix holds all weights, so that the optimiser takes a handful of operations a step.
        self.flat = torch.cat([value.reshape(len(members), -1) for value in weights.values()], 1)
        parts = self.flat.split([value[0].numel() for value in weights.values()], 1)
        self.weights = {n: part.view(w.shape) for (n, w), part in zip(weights.items(), parts, strict=True)}
        self.gradients = torch.empty_like(self.flat)
        column = [[getattr(c.settings, name) for c in self.configs] for name in ("lr", "weight_decay", "momentum")]
        lr, decay, momentum = torch.tensor(column, dtype=self.flat.dtype, device=job.device).unsqueeze(2)
        self.optimizer: _Adam | _SGD
        adam = self.settings.optimizer == "adam"
        self.optimizer = _Adam(self.flat, lr, decay) if adam else _SGD(self.flat, lr, decay, momentum)
        seeds = [config.settings.seed for config in self.configs]
        which = {seed: i for i, seed in enumerate(dict.fromkeys(seeds))}
        self.order_of = torch.tensor([which[seed] for seed in seeds], device=job.device)
        self.job = job
        self.groups: list[Group] = []
        # Of each group, the arguments of its loss that are numbers.
        self.numbers: list[State] = []
        self._group_losses()
        self.modules = [self.network, *filter(None, (module_of(group.loss) for group in self.groups))]

    def _group_losses(self) -> None:
        for key, same in groupby(self.configs, key=lambda config: config.group):
            members = list(same)
            numbers = {
                name: torch.tensor([m.batched[name] for m in members], dtype=self.flat.dtype, device=self.flat.device)
                for name in members[0].batched
            }
            fixed = {k: v for k, v in members[0].arguments.items() if k not in numbers}
            loss = functools.partial(members[0].loss, **fixed)
            self.groups.append(Group(key, len(members), loss, asks_for(loss, "features")))
            self.numbers.append(numbers)

    def forward(self, state: State, x: Tensor, shared: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (R, B, C), features (R, B, D), penalties (R,) of x (R, B, ...), or of x (B, ...) shared by all."""

        def one(state: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return functional_call(self.network, state, (x,))

        return vmap(one, in_dims=(0, None if shared else 0))(state, x)

    def losses(self, logits: Tensor, target: Tensor, features: Tensor, numbers: list[State]) -> Tensor:
        """Loss (R,) of each configuration, whose numbers are those of its group."""
        sizes = [group.size for group in self.groups]
        rows = (logits.split(sizes), target.split(sizes), features.split(sizes))
        return torch.cat([group(*part) for group, *part in zip(self.groups, *rows, numbers, strict=True)])

    def differentiate(
        self, weights: State, fixed: State, numbers: list[State], x: Tensor, target: Tensor
    ) -> list[Tensor]:
        """Objectives (R,) on x (R, B, ...) or shared x (B, ...), and their gradients by each of the weights."""
        leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
        shared = x.dim() == self.splits["train"].x.dim()
        logits, features, penalty = self.forward({**leaves, **fixed}, x, shared)
        objective = self.losses(logits, target, features, numbers) + penalty
        # Configurations do not meet, so the gradient of the sum holds the gradient of each.
        parts = torch.autograd.grad(objective.sum(), list(leaves.values()), materialize_grads=True)
        return [objective.detach(), *parts]

    def gradient(self, x: Tensor, target: Tensor) -> Tensor:
        """Objectives (R,) on a batch; leaves their gradients in `gradients`."""
        arguments = (self.weights, self.fixed, self.numbers, x, target)
        step = self.differentiate if self.job.compiled is None else self._compiled_step(self.job.compiled, arguments)
        objective, *parts = step(*arguments)
        torch.cat([part.reshape(len(part), -1) for part in parts], 1, out=self.gradients)
        return objective

    def _compiled_step(
        self, known: dict[Any, Callable[..., list[Tensor]]], arguments: tuple[Any, ...]
    ) -> Callable[..., list[Tensor]]:
        """The compiled step that chunks of the same losses and sizes share; the plain one, said once, if it fails."""
        *_, x, target = arguments
        key = (tuple((group.key, group.size) for group in self.groups), x.shape, target.shape)
        if key not in known:
            try:
                known[key] = _compiled(self.differentiate, *arguments)
            except Exception as error:  # no compiler, or an operation that it does not take
                sentence = " ".join(str(error).split())
                warnings.warn(f"sweep goes on without torch.compile, which fails ({sentence[:160]})", stacklevel=2)
                self.job.compiled = None
                return self.differentiate
        return known[key]

    def train(self) -> Iterator[tuple[int, list[bool], Tensor | None]]:
        """Train; after each epoch yield its number, which configurations are not finite, and the metrics (4, R)."""
        # Configurations with the same seed see the same batches.
        orders = {config.settings.seed: batch_order(config.settings.seed) for config in self.configs}
        n = len(self.splits["train"].x)
        steps = self.settings.steps(n)
        step = 0
        for epoch in range(1, self.settings.epochs + 1):
            for module in self.modules:
                module.train()
            objectives = []
            for x, target in self._batches(orders):
                objectives.append(self.gradient(x, target))
                self.optimizer.step(self.gradients, self.settings.lr_factor(step, steps))
                step += 1
            for module in self.modules:
                module.eval()
            bad = ~torch.isfinite(torch.stack(objectives)).all(0)
            metrics = None
            if self.settings.evaluates(epoch):
                parts = [
                    *self._evaluate(self.splits["train"].x, self.labels),
                    *self._evaluate(self.splits["val"].x, self.splits["val"].y.expand(len(self.configs), -1)),
                ]
                metrics = torch.stack(parts).cpu()
                bad = bad.cpu() | ~torch.isfinite(metrics[0])
            yield epoch, bad.tolist(), metrics

    def _batches(self, orders: dict[int, torch.Generator]) -> Iterator[tuple[Tensor, Tensor]]:
        x, n = self.splits["train"].x, len(self.splits["train"].x)
        rows = self.settings.rows(n)
        if rows == n:
            yield x, self.labels
            return
        drawn = torch.stack([torch.randperm(n, generator=order) for order in orders.values()]).to(x.device)
        permutation = drawn[self.order_of]
        for batch in permutation.split(rows, 1):
            yield x.index_select(0, batch.flatten()).view(*batch.shape, *x.shape[1:]), self.labels.gather(1, batch)

    @torch.no_grad()
    def _evaluate(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss and accuracy, (R,) each."""
        total = torch.zeros(len(self.configs), dtype=torch.float64, device=x.device)
        correct = torch.zeros_like(total)
        rows = max(1, self.budget // (len(self.configs) * self.row_bytes))
        for part, target in zip(x.split(rows), labels.split(rows, 1), strict=True):
            logits, features, _ = self.forward({**self.weights, **self.fixed}, part, shared=True)
            total += self.losses(logits, target, features, self.numbers) * len(part)
            correct += (logits.argmax(2) == target).sum(1)
        return total / len(x), correct / len(x)

    def state(self) -> dict[str, Tensor]:
        """Stacked weights and buffers under the network's own names."""
        return {name.removeprefix("model."): value.detach() for name, value in {**self.weights, **self.fixed}.items()}


def _compiled(function: Callable[..., list[Tensor]], *arguments: Any) -> Callable[..., list[Tensor]]:
    """The tensor operations that function(*arguments) makes, compiled for arguments of the same shapes."""
    from torch.fx.experimental.proxy_tensor import make_fx

    # make_fx flattens what torch.compile itself does not take: autograd around vmap around a module's state. It counts
    # the arguments of a method wrongly.
    graph = make_fx(lambda *given: function(*given))(*arguments)
    compiled = torch.no_grad()(torch.compile(graph, dynamic=False))
    compiled(*arguments)
    return compiled


class _Adam:
    """torch.optim.Adam (betas 0.9 and 0.999, eps 1e-8, L2 decay) with a learning rate and decay for each row.

    Source: Kingma and Ba, "Adam" (arXiv 1412.6980), algorithm 1.
    """

    def __init__(self, flat: Tensor, lr: Tensor, decay: Tensor) -> None:
        self.flat, self.lr, self.decay = flat, lr, decay
        self.decays = bool(decay.any())
        self.mean, self.square, self.scratch = torch.zeros_like(flat), torch.zeros_like(flat), torch.empty_like(flat)
        self.t = 0

    def step(self, gradient: Tensor, factor: float) -> None:
        self.t += 1
        if self.decays:
            gradient.addcmul_(self.flat, self.decay)
        self.mean.lerp_(gradient, 0.1)
        self.square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        # Numerator and denominator both times this correction: one operation less over all weights.
        correction = (1 - 0.999**self.t) ** 0.5
        torch.sqrt(self.square, out=self.scratch).add_(1e-8 * correction).div_(self.lr)
        self.flat.addcdiv_(self.mean, self.scratch, value=-factor * correction / (1 - 0.9**self.t))


class _SGD:
    """torch.optim.SGD (L2 decay, momentum without dampening) with its numbers for each row."""

    def __init__(self, flat: Tensor, lr: Tensor, decay: Tensor, momentum: Tensor) -> None:
        self.flat, self.lr, self.decay, self.momentum = flat, lr, decay, momentum
        self.decays = bool(decay.any())
        self.velocity = torch.zeros_like(flat)

    def step(self, gradient: Tensor, factor: float) -> None:
        if self.decays:
            gradient.addcmul_(self.flat, self.decay)
        self.velocity.mul_(self.momentum).add_(gradient)
        self.flat.addcmul_(self.velocity, self.lr, value=-factor)
