"""A loss function as a module, for trainers that want one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Criterion(nn.Module):
    """`Criterion(comp_sum, tau=1.5)(logits, target)` is `comp_sum(logits, target, tau=1.5)`.

    Tensors among the parameters (class weights) become buffers, so that `.to(device)` moves them; an `nn.Parameter` (a
    temperature that is learned) stays one, for the optimiser to find in `criterion.parameters()`.

    Raises:
        TypeError: loss is not callable, or does not take a parameter of that name.
    """

    def __init__(self, loss: Callable[..., Tensor], **parameters: Any) -> None:
        super().__init__()
        if not callable(loss):
            raise TypeError(f"loss must be a function of (logits, target), but is {type(loss).__name__}")
        name = getattr(loss, "__name__", repr(loss))
        accepted = list(inspect.signature(loss).parameters)[2:]  # after logits and target
        for parameter in parameters:
            if parameter not in accepted:
                raise TypeError(f"{name} has no parameter {parameter!r}; it has {', '.join(accepted)}")
        self.loss = loss
        self._constants = {k: v for k, v in parameters.items() if not isinstance(v, Tensor)}
        for key, value in parameters.items():
            if isinstance(value, nn.Parameter):
                self.register_parameter(key, value)
            elif isinstance(value, Tensor):
                self.register_buffer(key, value)

    def _tensors(self) -> dict[str, Tensor]:
        return {**dict(self.named_buffers(recurse=False)), **dict(self.named_parameters(recurse=False))}

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.loss(logits, target, **self._constants, **self._tensors())

    def extra_repr(self) -> str:
        shown = {**self._constants, **{k: f"tensor{tuple(v.shape)}" for k, v in self._tensors().items()}}
        return ", ".join([getattr(self.loss, "__name__", repr(self.loss)), *(f"{k}={v}" for k, v in shown.items())])
