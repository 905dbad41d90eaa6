"""The losses that a user names for `lossbook compare`: read without executing anything, and tried on a few numbers."""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lossbook import losses

# `sweep` trains on the mean; a tensor of weights cannot be written in a word.
_RESERVED = ("weight", "ignore_index", "reduction")
_LONGEST = 10_000
_PROBE = 3


@dataclass(frozen=True)
class Candidate:
    """A loss to compare: how the user calls it, the function, and its settings to choose among."""

    label: str
    loss: Callable[..., Tensor]
    settings: tuple[dict[str, Any], ...] = ({},)

    @property
    def reads_features(self) -> bool:
        return "features" in inspect.signature(self.loss).parameters


def usable() -> list[str]:
    """The names of `lossbook.losses` that can be compared: functions of (logits, target), or of these and features."""
    return [name for name in losses.__all__ if (loss := _function(name)) and _result_of(loss) is not None]


def parse_losses(text: str) -> list[Candidate]:
    """Losses from `cross_entropy, focal(gamma=[1, 2, 3]), comp_sum(tau=1.5)`.

    A list of values is a choice among them; lists of several parameters give all combinations. Values are numbers,
    strings, True, False and None, read by `ast.literal_eval`.

    Raises:
        ValueError: no loss, the same twice, an unknown or unfit one, a bad value; the sentence names it.
    """
    if not text.strip():
        raise ValueError("losses is empty: name at least one, such as cross_entropy, focal(gamma=2)")
    if len(text) > _LONGEST:
        raise ValueError(f"losses has {len(text):,} letters; up to {_LONGEST:,} are read")
    try:
        tree = ast.parse(f"[{text.strip()}]", mode="eval").body
    # What deeply nested brackets raise depends on the version of Python.
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    if not isinstance(tree, ast.List):
        raise ValueError(f"losses cannot be read: {text[:200]!r}; write cross_entropy, focal(gamma=2), …")
    if not tree.elts:
        raise ValueError("losses is empty: name at least one, such as cross_entropy, focal(gamma=2)")
    found = [_candidate(node) for node in tree.elts]
    for i, candidate in enumerate(found):
        if any(other.label == candidate.label for other in found[:i]):
            raise ValueError(f"losses names {candidate.label} twice")
    return found


def check_losses(candidates: list[Candidate], num_classes: int) -> None:
    """Try every setting of every loss on a few numbers; ValueError names the first that refuses them."""
    for candidate in candidates:
        for setting in candidate.settings:
            try:
                result = _try(functools.partial(candidate.loss, **setting), num_classes)
            except (ValueError, TypeError, RuntimeError) as error:
                raise ValueError(f"{candidate.label}: {str(error).splitlines()[0]}") from None
            if not isinstance(result, Tensor) or result.dim() != 0:
                raise ValueError(f"{candidate.label} returns no single number, and cannot be trained by")


def _candidate(node: ast.expr) -> Candidate:
    call = node if isinstance(node, ast.Call) else None
    name = call.func if call else node
    if not isinstance(name, ast.Name) or (call and (call.args or any(k.arg is None for k in call.keywords))):
        raise ValueError(f"losses has {ast.unparse(node)[:80]!r}; write name or name(parameter=value)")
    loss = _function(name.id)
    if loss is None:
        raise ValueError(_unfit(name.id))
    result = _result_of(loss)
    if result is None:
        raise ValueError(_unfit(name.id))
    given = {keyword.arg: keyword.value for keyword in (call.keywords if call else [])}
    taken = [p for p in inspect.signature(loss).parameters if p not in ("logits", "target", "features", *_RESERVED)]
    choices = {}
    for key, value in given.items():
        if key not in taken:
            raise ValueError(f"{name.id} has no parameter {key!r} to set; it has {', '.join(taken) or 'none'}")
        choices[key] = _values(name.id, str(key), value)
    settings = tuple(dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values()))
    label = f"{name.id}({', '.join(f'{k}={ast.unparse(v)}' for k, v in given.items())})" if given else name.id
    candidate = Candidate(label, loss, settings)
    # Of three classes, which every loss takes; the data's own number is tried when it is known.
    check_losses([candidate], _PROBE)
    return candidate


def _values(loss: str, key: str, node: ast.expr) -> list[Any]:
    """The values to choose among, one or more."""
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"{loss}: {key}={ast.unparse(node)[:80]} is no plain value") from None
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ValueError(f"{loss}: {key} has an empty list to choose from")
    for i, one in enumerate(values):
        if not isinstance(one, bool | int | float | str | None):
            raise ValueError(f"{loss}: {key} must be a number or a word, or a list of them, but has {one!r}")
        if one in values[:i]:
            raise ValueError(f"{loss}: {key} lists {one!r} twice")
    return values


def _function(name: str) -> Callable[..., Any] | None:
    if name not in losses.__all__:
        return None
    loss = getattr(losses, name)
    return loss if inspect.isfunction(loss) else None


def _result_of(loss: Callable[..., Any]) -> Tensor | None:
    """What a loss gives for a few logits; None where it is no number, or the loss takes something else."""
    parameters = inspect.signature(loss).parameters
    needed = [name for name, p in parameters.items() if p.default is p.empty]
    if needed not in (["logits", "target"], ["logits", "target", "features"]):
        return None
    try:
        result = _try(loss, _PROBE)
    except (ValueError, TypeError, RuntimeError):
        return None
    return result if isinstance(result, Tensor) and result.dim() == 0 else None


def _try(loss: Callable[..., Any], num_classes: int) -> Any:
    target = torch.arange(2 * num_classes) % num_classes
    logits = torch.linspace(-1, 1, 2 * num_classes * num_classes).reshape(-1, num_classes)
    function = loss.func if isinstance(loss, functools.partial) else loss
    if "features" in inspect.signature(function).parameters:
        return loss(logits, target, features=torch.linspace(0, 1, 3 * len(target)).reshape(-1, 3))
    return loss(logits, target)


def _unfit(name: str) -> str:
    known = usable()
    if name in losses.__all__ and callable(getattr(losses, name)):
        return f"{name} is no loss of (logits, target) and nothing else; those are {', '.join(known)}"
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? There are" if near else "there are"
    return f"there is no loss {name!r}; {hint} {', '.join(known)}"
