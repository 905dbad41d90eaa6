"""An output layer for losses of the spherical family: its training step costs the same for any number of classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lossbook import checks

# `stabilize` brings singular values of U outside this interval back to 1.
LOW, HIGH = 0.5, 2.0
# The layer stabilises before its turn once |U| or |U^-1| exceeds this many times that of the identity ...
STRETCHED = 4.0
# ... and does without U^-1 once one of them exceeds this: float32 rows of V would lose more than three digits to it.
SINGULAR = 1e3
ROWS = 16_384  # of V, taken at a time where all of it is needed


class _Forward(NamedTuple):
    """What `update` needs of the forward pass: H, k, Hhat = H Q, Ht = H U^T and the rows V[k]."""

    hidden: Tensor
    classes: Tensor
    hidden_q: Tensor
    hidden_u: Tensor
    rows: Tensor
    dtype: torch.dtype


class FactoredOutput(nn.Module):
    """A linear layer of D classes whose exact gradient step costs O(m d^2), not O(m d D).

    The weight W (D, d) is held as W = V U + 1 omega^T. The outputs o_i = W h_i of the m rows of H are never formed:
    besides those of the K classes listed for the row, a loss of the spherical family needs only

        q_i = |o_i|^2 = h_i^T Q h_i,    s_i = sum_k o_ik = h_i^T wbar,    Q = W^T W,  wbar = W^T 1,

    and Q and wbar are small. `update` takes the loss's derivatives g_a (m, K), g_q (m,), g_s (m,) and makes the step of
    plain gradient descent W <- (1 - lr weight_decay) W - lr G H, where G (D, m) holds the derivatives in all outputs:
    2 g_q o + g_s for each, and g_a besides for the listed ones. It never forms G. What reaches all rows of W changes U
    and omega; what reaches the listed classes, their rows of V:

        P = 2 diag(g_q) H,    c = 1 - lr weight_decay
        U     <- U (c I - lr P^T H),    omega <- c omega - lr H^T (P omega + g_s)
        V_k   <- V_k - lr sum_{(i, j): k_ij = k} g_a,ij h_i U^{-1},    with the new U
        wbar  <- c wbar - lr H^T t,     t = G^T 1 = P wbar + D g_s + sum_j g_a
        Q     <- c^2 Q - lr (X + X^T),  X = H^T (c G^T W - lr/2 (G^T G) H)

    U^{-1} follows U by the Woodbury identity. Every `stabilize_every` steps, and when U becomes ill-conditioned, its
    singular values outside [0.5, 2] are set to 1 and V is multiplied by them in turn (`stabilize`). A step that leaves
    U without a usable inverse (2 lr g_q |h|^2 near 1) multiplies V by U instead, which costs O(D d^2) that once.

    V is held in `dtype`, everything else in float64: it is d x d, so it costs little, and its rounding would add up.
    All are buffers that keep their dtype, and no optimiser sees them. A bias is a feature of H that is always 1.
    Momentum, Adam and gradient clipping need all entries of G and cannot be had.

    Args:
        d: width of the hidden layer.
        num_classes: D. The weights start uniform in (-1/sqrt(d), 1/sqrt(d)), as those of `torch.nn.Linear`.
        stabilize_every: steps, at least 1.
        dtype: of V; float32 or float64.

    Raises:
        ValueError: a size is not a whole number of at least 1, or dtype is another one.

    Source: Vincent, de Brebisson, Bouthillier 2015 (arXiv 1412.7091), algorithm 1, with the minibatch form of the
    authors' code; the stabilisation is theirs.
    """

    V: Tensor
    U: Tensor
    U_inv: Tensor
    omega: Tensor
    Q: Tensor
    wbar: Tensor
    steps: Tensor
    _pending: _Forward | None

    def __init__(
        self, d: int, num_classes: int, *, stabilize_every: int = 100, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        checks.whole("d", d, 1)
        checks.whole("num_classes", num_classes, 1)
        checks.whole("stabilize_every", stabilize_every, 1)
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, but is {dtype}")
        self.d, self.num_classes, self.stabilize_every = d, num_classes, stabilize_every
        bound = 1 / math.sqrt(d)
        self.register_buffer("V", torch.empty(num_classes, d, dtype=dtype).uniform_(-bound, bound))
        for name, shape in (("U", (d, d)), ("U_inv", (d, d)), ("omega", (d,)), ("Q", (d, d)), ("wbar", (d,))):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._restart()

    @torch.no_grad()
    def forward(self, hidden: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The statistics of the outputs of H: listed outputs a (m, K), sums of squares q (m,), sums s (m,).

        They are float64, because the variance q / D - (s / D)^2 subtracts two numbers that may be close, and carry no
        graph: set `requires_grad_()` on them to differentiate the loss. In training mode the layer remembers the call
        for `update`.

        Args:
            hidden: H (m, d), floating point.
            index: (m, K) integer class ids; usually K = 1, the label.

        Raises:
            ValueError, TypeError: an argument is refused by name.
            RuntimeError: V is damaged, because a step was interrupted (Ctrl-C) while it wrote.
        """
        self._check_batch(hidden, index)
        self._check_whole()
        h, index = hidden.detach().double(), index.long()
        hidden_q, hidden_u, rows = h @ self.Q, h @ self.U.T, self.V[index].double()
        a = (rows @ hidden_u[:, :, None]).squeeze(2) + (h @ self.omega)[:, None]
        if self.training:
            self._pending = _Forward(h, index, hidden_q, hidden_u, rows, hidden.dtype)
        return a, (h * hidden_q).sum(dim=1), h @ self.wbar

    @torch.no_grad()
    def update(self, grad_a: Tensor, grad_q: Tensor, grad_s: Tensor, lr: float, *, weight_decay: float = 0.0) -> Tensor:
        """One step of gradient descent on W, for the batch of the last forward pass in training mode.

        When an argument is refused nothing has changed, and the update can be repeated with a better one.

        Args:
            grad_a, grad_q, grad_s: the derivatives of the loss in a (m, K), q (m,) and s (m,).
            lr: > 0.
            weight_decay: >= 0, with lr * weight_decay < 1: the L2 decay of `torch.optim.SGD`.

        Returns:
            The derivative of the loss in H, G^T W before the step, (m, d) in the dtype of H.

        Raises:
            RuntimeError: there was no forward pass since the last update.
            ValueError, TypeError: an argument is refused by name, or the step overflows.
        """
        if self._pending is None:
            raise RuntimeError("update needs a forward pass in training mode before it")
        h, k, hidden_q, hidden_u, rows, dtype = self._pending
        self._check_gradients(grad_a, grad_q, grad_s, k.shape)
        checks.parameter("lr", lr, 0, open_low=True)
        checks.parameter("weight_decay", weight_decay, 0)
        c = 1 - lr * weight_decay
        if c <= 0:
            raise ValueError(f"lr * weight_decay must be below 1, but is {lr * weight_decay:g}")
        g_a, g_q, g_s = grad_a.double(), grad_q.double()[:, None], grad_s.double()

        p, y = 2 * g_q * h, g_a.sum(dim=1)
        r = (g_a[:, None] @ rows).squeeze(1) @ self.U + torch.outer(y, self.omega)  # g_a^T W
        grad_hidden = 2 * g_q * hidden_q + r + torch.outer(g_s, self.wbar)
        t = p @ self.wbar + self.num_classes * g_s + y
        same = (k.reshape(-1, 1) == k.reshape(1, -1)) * torch.outer(g_a.flatten(), g_a.flatten())
        listed = same.view(*k.shape, *k.shape).sum(dim=(1, 3))
        gram = grad_hidden @ p.T + torch.outer(t, g_s) + p @ r.T + torch.outer(g_s, y) + listed  # G^T G
        x = h.T @ (c * grad_hidden - lr / 2 * (gram @ h))

        u = c * self.U - lr * (hidden_u.T @ p)
        # Woodbury: (c I - lr P^T H)^{-1} = (I + lr/c P^T K H) / c and H (c I - lr P^T H)^{-1} = K H / c,
        # with K = (I - lr/c H P^T)^{-1}; `solved` is H U^{-1} with the new U.
        core = torch.eye(len(h), dtype=h.dtype, device=h.device) - lr / c * (h @ p.T)
        solved = torch.linalg.solve_ex(core, h @ self.U_inv).result / c
        new = {
            "U": u,
            "U_inv": self.U_inv / c + lr / c * (p.T @ solved),
            "omega": c * self.omega - lr * (h.T @ (p @ self.omega + g_s)),
            "Q": c**2 * self.Q - lr * (x + x.T),
            "wbar": c * self.wbar - lr * (h.T @ t),
            "steps": self.steps + 1,
        }
        for name in ("U", "Q", "wbar"):
            if checks.can_read(u) and not torch.isfinite(new[name].sum()):
                raise ValueError(f"the step overflows in {name}: lr {lr:g} is too large")

        # Nothing is written before everything is computed.
        self._pending = None
        with self._writing():
            if not _stretch(u, new["U_inv"]) <= SINGULAR:
                for part in self.V.split(ROWS):
                    part.copy_(part @ u.to(part.dtype))
                new["U"] = new["U_inv"] = torch.eye(self.d, dtype=u.dtype, device=u.device)
                solved = h
            change = (g_a[:, :, None] * solved[:, None]).flatten(0, 1)
            self.V.index_add_(0, k.flatten(), change.to(self.V.dtype), alpha=-lr)
            self._buffers.update(new)
        crowded = _stretch(self.U, self.U_inv) > STRETCHED * math.sqrt(self.d)
        if crowded or int(self.steps) % self.stabilize_every == 0:
            self.stabilize()
        return grad_hidden.to(dtype)

    @torch.no_grad()
    def stabilize(self) -> int:
        """Set the singular values of U outside [0.5, 2] to 1, leaving W as it is; return how many there were.

        U = A diag(sigma) B^T. With r values to mend, V <- V + V A_r diag(sigma_r - 1) A_r^T costs O(D d r), and looking
        for them O(d^3).
        """
        self._check_whole()
        self._pending = None
        a, sigma, bt = torch.linalg.svd(self.U)
        off = (sigma < LOW) | (sigma > HIGH)
        mended = sigma.where(~off, 1.0)
        right = a[:, off].to(self.V.dtype)
        left = right * (sigma[off] - 1).to(self.V.dtype)
        with self._writing():
            if off.any():
                for part in self.V.split(ROWS):
                    part.addmm_(part @ left, right.T)
            self._buffers.update(U=(a * mended) @ bt, U_inv=(bt.T / mended) @ a.T)
        return int(off.sum())

    @torch.no_grad()
    def weight(self) -> Tensor:
        """W = V U + 1 omega^T, a new tensor (D, d) in the dtype of V. All outputs of H are `H @ weight().T`."""
        self._check_whole()
        return torch.addmm(self.omega.to(self.V.dtype), self.V, self.U.to(self.V.dtype))

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        """Start from a weight (D, d): V = W, U = I, omega = 0, and Q and wbar computed from it, in O(D d^2).

        `layer.set_weight(layer.weight())` rids a layer of what rounding has added up.

        Raises:
            ValueError, TypeError: weight is not a finite floating-point tensor of shape (D, d).
        """
        _float_tensor("weight", weight, (self.num_classes, self.d))
        self.V.copy_(weight)
        self._restart()

    def _restart(self) -> None:
        """The book-keeping of W = V."""
        eye = torch.eye(self.d, dtype=torch.float64, device=self.V.device)
        self.U, self.U_inv, self.omega = eye, eye.clone(), torch.zeros_like(self.omega)
        self.Q, self.wbar = torch.zeros_like(self.Q), torch.zeros_like(self.wbar)
        for rows in self.V.split(ROWS):
            wide = rows.double()
            self.Q.addmm_(wide.T, wide)
            self.wbar += wide.sum(dim=0)
        self._pending, self._whole = None, True

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """V and U change together: an interrupt between them is noticed by the next call, not by the results."""
        self._whole = False
        yield
        self._whole = True

    def _check_whole(self) -> None:
        if not self._whole:
            raise RuntimeError("an interrupted step has left the layer between two states: load a checkpoint")

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._check_whole()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._pending, self._whole = None, True

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FactoredOutput:
        """`.to(device)` moves the layer; what would change a dtype, such as `.half()`, does not."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        self._pending = None
        return super()._apply(move, recurse)

    def extra_repr(self) -> str:
        return f"{self.d}, {self.num_classes}, stabilize_every={self.stabilize_every}"

    def _check_batch(self, hidden: Tensor, index: Tensor) -> None:
        _float_tensor("hidden", hidden, (None, self.d))
        if not isinstance(index, Tensor):
            raise TypeError(f"index must be a torch.Tensor, but is {type(index).__name__}")
        if index.dtype == torch.bool or index.is_floating_point() or index.is_complex():
            raise ValueError(f"index must hold integer class ids, but has dtype {index.dtype}")
        if index.dim() != 2 or len(index) != len(hidden) or index.numel() == 0:
            raise ValueError(
                f"index must have shape ({len(hidden)}, K) to go with hidden, but has shape {tuple(index.shape)}"
            )
        if checks.can_read(index):
            index = index.long()
            bad = (index < 0) | (index >= self.num_classes)
            if bad.any():
                raise ValueError(f"index has class {int(index[bad][0])}, but the layer has {self.num_classes} classes")

    def _check_gradients(self, grad_a: Tensor, grad_q: Tensor, grad_s: Tensor, shape: torch.Size) -> None:
        _float_tensor("grad_a", grad_a, tuple(shape))
        _float_tensor("grad_q", grad_q, (shape[0],))
        _float_tensor("grad_s", grad_s, (shape[0],))


def _stretch(u: Tensor, u_inv: Tensor) -> float:
    """At least the largest singular value of either; sqrt(d) for the identity."""
    return float(torch.maximum(u.norm(), u_inv.norm()))


def _float_tensor(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    """Refuse what is not a finite floating-point tensor of that shape; None stands for any length of at least 1."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, but is {type(tensor).__name__}")
    fits = tensor.dim() == len(shape) and all(
        n > 0 and n == (n if want is None else want) for n, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits or not tensor.is_floating_point():
        wanted = ", ".join("m" if n is None else str(n) for n in shape)
        raise ValueError(
            f"{name} must be floating point of shape ({wanted}), but is {tensor.dtype} of shape {tuple(tensor.shape)}"
        )
    checks.finite(name, tensor)
