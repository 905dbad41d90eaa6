"""What `fit` and `sweep` share: checked settings, data on a device, the order of batches, the objective."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lossbook import checks

Loss = Callable[..., Tensor]
Penalty = Callable[[nn.Module, Tensor], Tensor]

# Rows of a forward pass without gradients: enough to keep the cores busy, little enough for any memory.
EVALUATION_ROWS = 2048


@dataclass(frozen=True)
class Settings:
    """How a network is trained; refuses bad values by name (ValueError)."""

    epochs: int
    batch_size: int | None
    lr: float
    weight_decay: float
    optimizer: str
    momentum: float
    schedule: str
    seed: int
    eval_every: int

    def __post_init__(self) -> None:
        checks.whole("epochs", self.epochs, 1)
        checks.whole("eval_every", self.eval_every, 1)
        checks.whole("seed", self.seed, 0)
        if self.batch_size is not None:
            checks.whole("batch_size", self.batch_size, 1)
        real("lr", self.lr, positive=True)
        real("weight_decay", self.weight_decay)
        real("momentum", self.momentum, below=1.0)
        one_of("optimizer", self.optimizer, ("adam", "sgd"))
        one_of("schedule", self.schedule, ("constant", "cosine"))

    def rows(self, n: int) -> int:
        """Examples in a full batch of a training split of n."""
        return n if self.batch_size is None else min(self.batch_size, n)

    def steps(self, n: int) -> int:
        """Steps of the whole training on n examples."""
        return self.epochs * math.ceil(n / self.rows(n))

    def lr_factor(self, step: int, steps: int) -> float:
        """What the learning rate is multiplied by at step 0..steps-1; cosine goes from 1 towards 0."""
        return 1.0 if self.schedule == "constant" else 0.5 * (1 + math.cos(math.pi * step / steps))

    def evaluates(self, epoch: int) -> bool:
        """Whether epoch 1..epochs ends with an evaluation; the last one always does."""
        return epoch % self.eval_every == 0 or epoch == self.epochs


def real(name: str, value: Any, *, positive: bool = False, below: float = math.inf) -> None:
    """Refuse a value outside [0, below), or outside (0, below) with `positive`."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value < below or (positive and value == 0):
        raise ValueError(f"{name} must lie in {'(' if positive else '['}0, {below:g}), but is {value!r}")


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not in the list."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, but is {value!r}")


def function(name: str, value: Any) -> None:
    """Refuse what cannot be called."""
    if not callable(value):
        raise TypeError(f"{name} must be a function, but is {type(value).__name__}")


def pick_device(device: str | torch.device) -> torch.device:
    """The device named; "auto" is CUDA where there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
        torch.empty(0, device=picked)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"device must be 'auto' or a device of this machine, but is {device!r}") from error
    return picked


class Examples(NamedTuple):
    """x (N, ...) floating point and labels y (N,)."""

    x: Tensor
    y: Tensor


def examples(data: Any, split: str, device: torch.device) -> Examples:
    """A split of data on the device; refuses a split that is missing, empty, misshapen or not finite."""
    if not hasattr(data, split):
        raise TypeError(f"data must have the splits .train and .val, but {type(data).__name__} has no .{split}")
    x, y = getattr(data, split)[:2]
    for name, tensor in ((f"{split}.x", x), (f"{split}.y", y)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, but is {type(tensor).__name__}")
    if x.dim() < 2 or not x.is_floating_point():
        raise ValueError(
            f"{split}.x must be floating point of shape (N, ...), but is {x.dtype} of shape {tuple(x.shape)}"
        )
    if y.dtype != torch.int64 or y.shape != x.shape[:1]:
        raise ValueError(
            f"{split}.y must be int64 of shape ({len(x)},) to go with {split}.x, "
            f"but is {y.dtype} of shape {tuple(y.shape)}"
        )
    if len(x) == 0:
        raise ValueError(f"{split} has no examples")
    checks.finite(f"{split}.x", x)
    return Examples(x.to(device), y.to(device))


def check_labels(name: str, y: Tensor, num_classes: int) -> None:
    """Refuse labels outside [0, num_classes); on a GPU they would end the process."""
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"{name} has label {low if low < 0 else high}, but the model has {num_classes} logits")


def asks_for(loss: Loss, name: str) -> bool:
    """Whether a loss has a parameter of this name that is still to be given."""
    if isinstance(loss, functools.partial):
        return name not in loss.keywords and asks_for(loss.func, name)
    try:
        return name in inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters
    except ValueError:  # a built-in function tells no signature
        return False


def module_of(loss: Loss) -> nn.Module | None:
    """The module of a loss that is one, behind functools.partial too."""
    while isinstance(loss, functools.partial):
        loss = loss.func
    return loss if isinstance(loss, nn.Module) else None


class Outputs(nn.Module):
    """Logits, features and penalty of a model, as one module so that `torch.func.functional_call` reaches all.

    The features are empty, (N, 0), unless `with_features` or the penalty asks for them.
    """

    def __init__(self, model: nn.Module, penalty: Penalty | None, *, with_features: bool = False) -> None:
        super().__init__()
        self.featured = with_features or penalty is not None
        if self.featured and not (hasattr(model, "features") and hasattr(model, "head")):
            asking = "a penalty" if penalty is not None else "a loss that reads features"
            raise TypeError(
                f"{asking} needs a model with .features(x) and .head, but {type(model).__name__} lacks them"
            )
        self.model, self.penalty = model, penalty

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not self.featured:
            return self.model(x), x.new_zeros(len(x), 0), x.new_zeros(())
        features: Tensor = self.model.features(x)  # type: ignore[operator]
        penalty = x.new_zeros(()) if self.penalty is None else self.penalty(self.model, features)
        return self.model.head(features), features, penalty  # type: ignore[operator]


def probe(outputs: Outputs, loss: Loss, train: Examples) -> tuple[float, float, int]:
    """Loss, penalty and number of logits on the first examples; refuses logits or a loss of the wrong shape."""
    x, y = train.x[:64], train.y[:64]
    outputs.eval()
    if module := module_of(loss):
        module.eval()
    with torch.no_grad():
        logits, features, penalty = outputs(x)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"the model must return logits (N, C), but for {len(x)} examples it returns {shape}")
        check_labels("train.y", train.y, logits.shape[1])
        value = loss(logits, y, features=features) if asks_for(loss, "features") else loss(logits, y)
        for name, result in (("loss", value), ("penalty", penalty)):
            if not isinstance(result, Tensor) or result.dim() != 0:
                shape = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
                raise ValueError(f"{name} must return a scalar tensor (reduction 'mean'), but returns {shape}")
        if module and asks_for(loss, "index"):
            _knows_last_row(loss, logits[:1], y[:1], features[:1], len(train.x))
    return float(value), float(penalty), logits.shape[1]


def _knows_last_row(loss: Loss, logits: Tensor, y: Tensor, features: Tensor, n: int) -> None:
    """Let a copy of a loss that keeps something a row refuses an index beyond it: on a GPU it would end the process."""
    loss = copy.deepcopy(loss)
    if module := module_of(loss):
        module.train()
    extra = {"features": features} if asks_for(loss, "features") else {}
    with checks.values(True):
        loss(logits, y, index=torch.tensor([n - 1], device=y.device), **extra)


@contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from torch's global generators seeded with `seed` inside the block, and leave them untouched after it."""
    if device.type == "cuda":
        with torch.random.fork_rng(devices=[device]):
            torch.manual_seed(seed)
            yield
        return
    # torch.manual_seed would seed the GPUs too, and where there are none takes longer than building a small network.
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(before)


def batch_order(seed: int) -> torch.Generator:
    """The generator of a run's batch order: on the CPU, so that every device sees the same batches."""
    return torch.Generator().manual_seed(seed)


def progress_bar(total: int, what: str, progress: bool | None) -> Any:
    """A tqdm bar; with progress=None it shows only where somebody watches."""
    from tqdm.auto import tqdm

    if progress is None:
        ipython = sys.modules.get("IPython")
        live = hasattr(ipython.get_ipython() if ipython else None, "kernel") and not os.environ.get("LOSSBOOK_STATIC")
        progress = live or sys.stderr.isatty()
    return tqdm(total=total, desc=what, disable=not progress, leave=False)
