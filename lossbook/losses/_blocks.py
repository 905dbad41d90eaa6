"""Sums over all pairs of embeddings without a matrix of them: in tiles with their own gradient, or row by row."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function

# Up to so many similarities are written out, which torch differentiates any number of times, maps and compiles.
WRITTEN_OUT = 2**20
# A tile and what is made of it stay in the caches of a core.
TILE = 1024
# The most entries of one piece in `by_rows`, as many as a tile has.
PIECE = 2**20

Loss = TypeVar("Loss", bound=Callable[..., Any])


def without_autocast(loss: Loss) -> Loss:
    """The loss computed outside autocast, which would round the similarities to 8 bits before they are divided by τ."""

    @functools.wraps(loss)
    def exact(*arguments: Any, **named: Any) -> Any:
        device = next((a.device.type for a in (*arguments, *named.values()) if isinstance(a, Tensor)), "cpu")
        with torch.autocast(device, enabled=False):
            return loss(*arguments, **named)

    return exact  # type: ignore[return-value]


def log_sum_exp_within(x: Tensor, group: int = 1) -> Tensor:
    """log sum_j exp(x_i · x_j) over the rows j outside i's group: `(n, d)` -> `(n,)`.

    Groups are runs of `group` rows, from the first row on. x · x is computed once for both of its halves, so that value
    and gradient take the time of two products x xᵀ.
    """
    if len(x) ** 2 <= WRITTEN_OUT:
        return (x @ x.mT).masked_fill(_same_group(len(x), group, x.device), -torch.inf).logsumexp(1)
    return _LogSumExp.apply(x, None, group, False)[0]


def log_sum_exp_between(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """log sum_j exp(x_i · y_j), `(n,)`, and log sum_i exp(x_i · y_j), `(m,)`, of x `(n, d)` and y `(m, d)`.

    Value and gradient of both take the time of four products x yᵀ and a little.
    """
    if len(x) * len(y) <= WRITTEN_OUT:
        similarities = x @ y.mT
        return similarities.logsumexp(1), similarities.logsumexp(0)
    rows, columns = _LogSumExp.apply(x, y, 1, True)
    return rows, columns


def by_rows(
    function: Callable[..., tuple[Tensor, ...]], rows: Sequence[Tensor], shared: Sequence[Tensor], *, width: int
) -> tuple[Tensor, ...]:
    """function(first, *rows, *shared) of pieces of the rows, joined; `first` is where in them the piece begins.

    The function may make tensors of `width` entries a row. If all rows together have more than PIECE of these, it is
    called piece by piece, what it makes is dropped, and made again for the gradient. All that shall have a gradient is
    among rows and shared.
    """
    step = max(1, PIECE // width)
    if len(rows[0]) <= step:
        return function(0, *rows, *shared)
    return _ByRows.apply(function, step, len(rows), *rows, *shared)


def on_diagonal(piece: Tensor, first: int) -> Tensor:
    """True where a piece of a square matrix, the rows from `first` on, holds its diagonal."""
    rows, columns = (torch.arange(length, device=piece.device) for length in piece.shape)
    return (rows + first)[:, None] == columns


def _same_group(n: int, group: int, device: torch.device) -> Tensor:
    of = torch.arange(n, device=device) // group
    return of[:, None] == of


class FirstOnly(Function):
    """The gradient of a function of many similarities; one of its own, so that its derivative is refused, not 0."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise NotImplementedError(f"a loss of more than {WRITTEN_OUT:,} similarities has first derivatives only")


class _LogSumExp(Function):
    """The log-sum-exps of the rows of x yᵀ, of its columns too if `both`; if y is None of x xᵀ without the groups."""

    @staticmethod
    def forward(x: Tensor, y: Tensor | None, group: int, both: bool) -> tuple[Tensor, Tensor]:
        rows = x.new_full((len(x),), -torch.inf)
        columns = rows if y is None else y.new_full((len(y) if both else 0,), -torch.inf)
        for i, j, tile in tiles(x, y, group):
            rows[i] = torch.logaddexp(rows[i], tile.logsumexp(1))
            if both or (y is None and i != j):
                columns[j] = torch.logaddexp(columns[j], tile.logsumexp(0))
        return rows, columns if y is not None else rows.new_empty(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, y, ctx.group, ctx.both = inputs
        ctx.save_for_backward(x, y, *output)

    @staticmethod
    def backward(ctx: Any, pull_rows: Tensor, pull_columns: Tensor) -> tuple[Tensor | None, ...]:
        dx, dy = _Slope.apply(*ctx.saved_tensors, pull_rows, pull_columns, ctx.group, ctx.both)
        return dx, dy if ctx.saved_tensors[1] is not None else None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return one_by_one(_LogSumExp, info, in_dims, inputs)


class _Slope(FirstOnly):
    """The gradient of `_LogSumExp`."""

    @staticmethod
    def forward(
        x: Tensor,
        y: Tensor | None,
        rows: Tensor,
        columns: Tensor,
        pull_rows: Tensor,
        pull_columns: Tensor,
        group: int,
        both: bool,
    ) -> tuple[Tensor, Tensor]:
        dx = torch.zeros_like(x)
        to, dy = (x, dx) if y is None else (y, torch.zeros_like(y))
        if y is None:
            columns, pull_columns, both = rows, pull_rows, True
        for i, j, tile in tiles(x, y, group):
            weights = (tile - rows[i, None]).exp_().mul_(pull_rows[i, None])
            if both:
                weights.add_(tile.sub_(columns[j]).exp_().mul_(pull_columns[j]))
            dx[i].addmm_(weights, to[j])
            if y is not None or i != j:
                dy[j].addmm_(weights.mT, x[i])
        return dx, dy if y is not None else dx.new_empty(0)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return one_by_one(_Slope, info, in_dims, inputs)


def tiles(x: Tensor, y: Tensor | None, group: int = 1) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows, columns and their similarities; of x xᵀ the tiles on and above the diagonal, -inf within a group."""
    step = TILE - TILE % group
    to = x if y is None else y
    for a in range(0, len(x), step):
        i = slice(a, a + step)
        for b in range(0 if y is not None else a, len(to), step):
            j = slice(b, b + step)
            tile = x[i] @ to[j].mT
            if y is None and a == b:
                tile.masked_fill_(_same_group(len(tile), group, x.device), -torch.inf)
            yield i, j, tile


class _ByRows(Function):
    """The function of pieces of the first `count` tensors, `step` rows each, and of all of the others."""

    @staticmethod
    def forward(function: Callable[..., tuple[Tensor, ...]], step: int, count: int, *tensors: Tensor) -> Any:
        parts = [function(first, *piece, *tensors[count:]) for first, piece in _pieces(step, tensors[:count])]
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.settings = inputs[:3]
        ctx.save_for_backward(*inputs[3:])

    @staticmethod
    def backward(ctx: Any, *pulls: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[3:]
        slopes = iter(_SlopeByRows.apply(*ctx.settings, wanted, *ctx.saved_tensors, *pulls))
        return None, None, None, *(next(slopes) if wants else None for wants in wanted)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return one_by_one(_ByRows, info, in_dims, inputs)


class _SlopeByRows(FirstOnly):
    """The gradient of `_ByRows` in the wanted tensors."""

    @staticmethod
    def forward(
        function: Callable[..., tuple[Tensor, ...]], step: int, count: int, wanted: tuple[bool, ...], *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        tensors, pulls = inputs[: len(wanted)], inputs[len(wanted) :]
        slopes = [torch.zeros_like(x) if wants else None for x, wants in zip(tensors, wanted, strict=True)]
        for first, piece in _pieces(step, (*tensors[:count], *pulls)):
            with torch.enable_grad():
                parts = (*piece[:count], *tensors[count:])
                leaves = [x.detach().requires_grad_(wants) for x, wants in zip(parts, wanted, strict=True)]
                outputs = function(first, *leaves)
            pairs = [(y, pull) for y, pull in zip(outputs, piece[count:], strict=True) if y.requires_grad]
            sources = [x for x in leaves if x.requires_grad]
            if not pairs:
                continue
            # What the function takes as a constant has the gradient 0.
            ends, their_pulls = zip(*pairs, strict=True)
            found = iter(torch.autograd.grad(ends, sources, their_pulls, materialize_grads=True))
            for k, slope in enumerate(slopes):
                if slope is not None:
                    (slope[first : first + step] if k < count else slope).add_(next(found))
        return tuple(slope for slope in slopes if slope is not None)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return one_by_one(_SlopeByRows, info, in_dims, inputs)


def _pieces(step: int, rows: Sequence[Tensor]) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    pieces = zip(*(x.split(step) for x in rows), strict=True)
    return ((k * step, piece) for k, piece in enumerate(pieces))


def one_by_one(function: type[Function], info: Any, in_dims: Any, inputs: Any) -> Any:
    """The rule by which `vmap` calls a function whose tiles have no room for one more dimension."""
    calls = (
        [x.select(dim, k) if isinstance(dim, int) else x for x, dim in zip(inputs, in_dims, strict=True)]
        for k in range(info.batch_size)
    )
    outputs = tuple(torch.stack(column) for column in zip(*(function.apply(*call) for call in calls), strict=True))
    return outputs, (0,) * len(outputs)
