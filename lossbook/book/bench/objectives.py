"""Value and gradient of the losses: in cross-entropies, and against the libraries that have them too."""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from lossbook.book.bench.measure import Measurement, Work, compare, one_thread

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Rows and classes of the logits.
SIZE, SIZE_CUDA = (4_096, 100), (65_536, 1_000)
# Embeddings of a batch, and their dimension.
BATCHES = (256, 1_024)
WIDTH = 128
# The library's NT-Xent compares each of N positives with N² negatives: 18 GB at 1,024.
LARGEST_NT_XENT = 256
# Calls that are timed together, since one takes milliseconds.
CALLS = 5

_CONTRACT = {"logits", "target", "weight", "ignore_index", "reduction"}
# Arguments that take another path through a loss than its defaults do.
_VARIANTS: dict[str, list[dict[str, Any]]] = {
    "cross_entropy": [{"label_smoothing": 0.1}],
    "comp_sum": [{"tau": 0.5}],
    "focal": [{"gamma": 0.5}],
    "ldr_kl": [{"normalize": "softplus_mean"}],
    "aldr_kl": [{"normalize": "softplus_l1"}],
}


class Pair(NamedTuple):
    """A loss and its counterpart as functions without arguments, what the gradient is taken in, and calls at a time."""

    ours: Callable[[], Tensor]
    peer: Callable[[], Tensor]
    leaves: tuple[Tensor, ...]
    calls: int = CALLS


def loss_gradients(repeats: int, device: torch.device) -> Iterator[Measurement]:
    """Every loss of logits in units of torch's cross-entropy, then what torch and pytorch-metric-learning have too.

    On one thread of the CPU: 4,096 × 100 logits (65,536 × 1,000 on a GPU) and batches of 256 and 1,024 embeddings. A
    row is a module of losses, measured by the slowest of them. Promised: no loss of logits costs more than twelve
    cross-entropies; the triplets of 256 embeddings at least twice as fast as pytorch-metric-learning, and its NT-Xent
    at least five times. Of losses that torch has too none is promised to be faster: torch does not check its labels.
    """
    with one_thread():
        rows = [
            *_families(repeats, device),
            *(_row(name, "torch", pair, repeats, device) for name, pair in torch_counterparts(device).items()),
            *_library(repeats, device),
        ]
    yield from rows


def logit_losses(logits: Tensor) -> dict[str, dict[str, Callable[..., Tensor]]]:
    """The exported losses that keep the contract of `lossbook.losses`, with their variants, by module and name.

    Returns:
        {module: {name: loss(logits=…, target=…)}}; what a loss needs beside logits and target is bound.
    """
    import torch

    from lossbook import losses

    beside = {
        "logits_adv": logits.detach() / 2,
        "past_probs": torch.full_like(logits, 1 / logits.shape[1]).detach(),
        "alpha": 0.3,
        "features": logits.detach().relu(),
    }
    found: dict[str, dict[str, Callable[..., Tensor]]] = {}
    for name in losses.__all__:
        loss = getattr(losses, name)
        if not inspect.isfunction(loss):
            continue
        parameters = inspect.signature(loss).parameters
        if not set(parameters) >= _CONTRACT:
            continue
        needed = {p.name for p in parameters.values() if p.default is p.empty} - _CONTRACT
        module = found.setdefault(loss.__module__.removeprefix("lossbook.losses."), {})
        for variant in ({}, *_VARIANTS.get(name, ())):
            title = ", ".join([name, *(f"{key} {value}" for key, value in variant.items())])
            module[title] = partial(loss, **{key: beside[key] for key in needed}, **variant)
    return found


def _families(repeats: int, device: torch.device) -> Iterator[Measurement]:
    from torch.nn.functional import cross_entropy

    logits, target = _batch(device)
    n, c = logits.shape
    # Read once for the value, written once for the gradient.
    work = Work(bytes=2 * logits.nbytes)
    for module, family in logit_losses(logits).items():
        rows = []
        for name, loss in family.items():
            pair = Pair(partial(loss, logits=logits, target=target), lambda: cross_entropy(logits, target), (logits,))
            title = f"{name} of {n:,} × {c:,} logits"
            rows.append(_row(title, "torch's cross-entropy", pair, repeats, device, at_least=1 / 12, work=work))
        costs = [1 / row.ratio for row in rows]
        note = f"{max(costs):.1f} cross-entropies"
        if len(rows) > 1:
            note += f", the slowest of {len(rows)} in {module}; their median is {statistics.median(costs):.1f}"
        yield replace(min(rows, key=lambda row: row.ratio), note=note)


def torch_counterparts(device: torch.device) -> dict[str, Pair]:
    """The losses that torch has with the same value, at the size of the bench."""
    import torch
    import torch.nn.functional as F

    from lossbook import losses

    z, y = _batch(device)
    n, c = z.shape
    weight = torch.linspace(0.5, 2, c, device=device)
    ignored = y.masked_fill(torch.arange(n, device=device) % 4 == 0, -100)
    onehot = F.one_hot(y, c).to(z.dtype)
    probs, teacher = (2 * z.detach()).softmax(dim=1), z.detach().roll(1, 0)
    scores = z.detach().flatten().requires_grad_()
    binary = (scores.detach().roll(1) > 0).to(z.dtype)

    def kl() -> Tensor:
        s, t = (x / 4 for x in (z, teacher))
        return 16 * F.kl_div(s.log_softmax(1), t.log_softmax(1), reduction="batchmean", log_target=True)

    size = f"of {n:,} × {c:,} logits"
    return {
        f"cross-entropy {size}": Pair(lambda: losses.cross_entropy(z, y), lambda: F.cross_entropy(z, y), (z,)),
        f"cross-entropy {size}, smoothed, weighted, a quarter ignored": Pair(
            lambda: losses.cross_entropy(z, ignored, weight=weight, label_smoothing=0.1),
            lambda: F.cross_entropy(z, ignored, weight=weight, label_smoothing=0.1),
            (z,),
        ),
        f"cross-entropy {size} to probabilities": Pair(
            lambda: losses.cross_entropy(z, probs), lambda: F.cross_entropy(z, probs), (z,)
        ),
        f"logistic loss of {n * c:,} scores": Pair(
            lambda: losses.logistic(scores, binary),
            lambda: F.binary_cross_entropy_with_logits(scores, binary),
            (scores,),
        ),
        f"Brier score {size}": Pair(
            lambda: losses.brier(z, y), lambda: F.mse_loss(z.softmax(1), onehot, reduction="sum") / n, (z,)
        ),
        f"mean absolute error {size}": Pair(
            lambda: losses.mae(z, y), lambda: F.l1_loss(z.softmax(1), onehot, reduction="sum") / n, (z,)
        ),
        f"squared error {size}": Pair(
            lambda: losses.spherical_mse(z, y), lambda: F.mse_loss(z, onehot, reduction="sum") / n, (z,)
        ),
        f"forward KL {size}": Pair(lambda: losses.forward_kl(z, teacher, temperature=4.0), kl, (z,)),
    }


def library_counterparts(count: int, device: torch.device) -> dict[str, Pair]:
    """The losses of `count` embeddings that pytorch-metric-learning has with the same value."""
    import torch
    from pytorch_metric_learning import distances
    from pytorch_metric_learning import losses as library
    from torch.nn.functional import normalize

    from lossbook import losses

    generator = torch.Generator().manual_seed(0)
    f = normalize(torch.randn(count, WIDTH, generator=generator), dim=1).to(device).requires_grad_()
    w = torch.randn(100, WIDTH, generator=generator).to(device).requires_grad_()
    label = torch.randint(100, (count,), generator=generator).to(device)
    fours = torch.arange(count, device=device) // 4
    example = torch.arange(count // 2, device=device).repeat(2)
    proxies = library.NormalizedSoftmaxLoss(100, WIDTH, temperature=1 / 16)
    proxies.W = torch.nn.Parameter(w.detach().T.clone())
    ntxent, supcon, variance = library.NTXentLoss(0.5), library.SupConLoss(0.1), library.VICRegLoss()
    triplets = library.TripletMarginLoss(margin=0.2, distance=distances.LpDistance(power=2))

    def views() -> tuple[Tensor, ...]:
        return f.chunk(2)

    def vicreg() -> Tensor:
        first, second = views()
        return variance(first, ref_emb=second)

    pairs = {
        "NT-Xent": Pair(lambda: losses.nt_xent(*views()), lambda: ntxent(f, example), (f,), 1),
        "SupCon": Pair(lambda: losses.supcon(torch.stack(views())), lambda: supcon(f, example), (f,)),
        "triplet loss": Pair(lambda: losses.triplet(f, fours), lambda: triplets(f, fours), (f,), 1),
        "normalised softmax": Pair(lambda: losses.normalized_softmax(f, w, label), lambda: proxies(f, label), (f,)),
        "VICReg": Pair(lambda: losses.vicreg(*views()), vicreg, (f,)),
    }
    if count > LARGEST_NT_XENT:
        del pairs["NT-Xent"]
    return {f"{name} of {count:,} embeddings": pair for name, pair in pairs.items()}


def _library(repeats: int, device: torch.device) -> Iterator[Measurement]:
    if find_spec("pytorch_metric_learning") is None:
        return
    promised = {f"NT-Xent of {BATCHES[0]:,} embeddings": 5.0, f"triplet loss of {BATCHES[0]:,} embeddings": 2.0}
    for count in BATCHES:
        for name, pair in library_counterparts(count, device).items():
            at_least = promised.get(name)
            yield _row(name, "pytorch-metric-learning", pair, repeats, device, at_least=at_least, memory=True)


def _row(
    name: str,
    peer_name: str,
    pair: Pair,
    repeats: int,
    device: torch.device,
    *,
    at_least: float | None = None,
    memory: bool = False,
    work: Work | None = None,
) -> Measurement:
    """`compare` of value and gradient; the seconds are those of a call."""
    import torch

    def slopes(loss: Callable[[], Tensor]) -> Callable[[], None]:
        def slope() -> None:
            for _ in range(pair.calls):
                torch.autograd.grad(loss(), pair.leaves)

        return slope

    name = f"{name}, with gradient"
    ours, peer = slopes(pair.ours), slopes(pair.peer)
    work = work and Work(pair.calls * work.bytes, pair.calls * work.flops)
    row = compare(name, peer_name, ours, peer, repeats, device=device, at_least=at_least, memory=memory, work=work)
    samples = tuple((a / pair.calls, b / pair.calls) for a, b in row.samples)
    return replace(row, ours=row.ours / pair.calls, peer=row.peer / pair.calls, samples=samples)


def _batch(device: torch.device) -> tuple[Tensor, Tensor]:
    import torch

    n, c = SIZE_CUDA if device.type == "cuda" else SIZE
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(n, c, generator=generator).to(device)
    return logits.requires_grad_(), torch.randint(c, (n,), generator=generator).to(device)
