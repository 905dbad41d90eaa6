"""`sweep`: train many configurations of one architecture at once, as one network with stacked weights."""

from __future__ import annotations

import copy
import functools
import os
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import groupby
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lossbook import checks
from lossbook.losses import cross_entropy
from lossbook.train import checkpoint as checkpoints
from lossbook.train.cluster import check_client, in_pieces, piece_size
from lossbook.train.grid import Configuration, configurations, loss_name
from lossbook.train.loop import Diverged, evaluate, fit
from lossbook.train.parts import Identity, Part, Record, State, Trained, opened, together
from lossbook.train.settings import (
    EVALUATION_ROWS,
    Examples,
    Loss,
    Outputs,
    Penalty,
    Settings,
    asks_for,
    batch_order,
    check_labels,
    examples,
    function,
    module_of,
    one_of,
    own_randomness,
    pick_device,
    probe,
    progress_bar,
)

if TYPE_CHECKING:
    from distributed import Client
    from pandas import DataFrame

# What a step of one chunk may hold in memory. On a CPU more gains nothing: it leaves the caches, and what
# `_keep_freed_memory` can keep.
_CPU_BYTES = 32 * 2**20
_METRICS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")


@dataclass(frozen=True, repr=False)
class Networks:
    """The networks of a sweep at one moment, in the grid's order: what they compute, and each of them as a module."""

    _network: nn.Module = field(kw_only=True)
    _make_model: Callable[[], nn.Module] = field(kw_only=True)
    _state: dict[str, Tensor] = field(kw_only=True)

    def __len__(self) -> int:
        return len(next(iter(self._state.values())))

    def model(self, i: int) -> nn.Module:
        """A new module with the weights of configuration i, on the CPU, in evaluation mode."""
        state = self.weights(i)
        with torch.random.fork_rng(devices=[]):
            model = self._make_model()
        _load(model.cpu(), state)
        return model.eval()

    def logits(self, x: Tensor) -> Tensor:
        """Logits of every configuration, (R, N, C) on the CPU; NaN where it diverged."""
        return self._predict(x, self._network)

    def features(self, x: Tensor) -> Tensor:
        """Features of every configuration, (R, N, D) on the CPU; NaN where it diverged."""
        if not hasattr(self._network, "features"):
            raise TypeError(f"{type(self._network).__name__} has no .features(x)")
        return self._predict(x, FeaturesOf(self._network))

    def weights(self, i: int) -> dict[str, Tensor]:
        """Parameters and buffers of configuration i by name; they share memory with the networks."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"configuration {i} of {len(self)}")
        return {name: stacked[i] for name, stacked in self._state.items()}

    @torch.no_grad()
    def _predict(self, x: Tensor, module: nn.Module) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a torch.Tensor, but is {type(x).__name__}")
        prefix = "network." if isinstance(module, FeaturesOf) else ""
        device = next(iter(self._state.values())).device
        rows = [part.to(device) for part in x.split(EVALUATION_ROWS)]
        out = []
        for i in range(len(self)):
            state = {prefix + name: value for name, value in self.weights(i).items()}
            out.append(torch.cat([functional_call(module, state, (part,)) for part in rows]).cpu())
        return torch.stack(out)


@dataclass(frozen=True, repr=False)
class SweepResult(Networks):
    """What a sweep trained, one entry a configuration, in the grid's order: `Networks` with their record.

    Attributes:
        table: DataFrame, a row per configuration: the grid's keys, the last train_loss, train_accuracy, val_loss,
            val_accuracy, with data.test also test_loss and test_accuracy, and `diverged`, the epoch in which the loss
            stopped being finite (missing for the others). The numbers of a diverged configuration are NaN.
        history: DataFrame, a row per configuration and evaluated epoch before it diverged: configuration (row of the
            table), the grid's keys, epoch, and the four training and validation numbers.
        method: "vmap" or "loop".
        seconds: the training took, evaluation included.
        kept: the networks after each of the epochs that `keep` asked for, {epoch: Networks} in rising order; the
            weights of a configuration are NaN from the epoch on in which it diverged.
    """

    table: DataFrame
    history: DataFrame
    method: str
    seconds: float
    kept: dict[int, Networks]

    def __repr__(self) -> str:
        return f"SweepResult({len(self)} configurations, method={self.method!r}, {self.seconds:.1f} s)"


class FeaturesOf(nn.Module):
    """A network whose output is network.features(x)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.features(x)  # type: ignore[operator]


def sweep(
    make_model: Callable[[], nn.Module],
    data: Any,
    grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]],
    *,
    loss: Loss = cross_entropy,
    epochs: int = 20,
    batch_size: int | None = 128,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    optimizer: str = "adam",
    momentum: float = 0.9,
    schedule: str = "constant",
    seed: int = 0,
    penalty: Penalty | None = None,
    device: str | torch.device = "auto",
    eval_every: int = 1,
    keep: Collection[int] = (),
    progress: bool | None = None,
    method: str = "auto",
    chunk: int | None = None,
    client: Client | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    compile: bool = False,
) -> SweepResult:
    """Train every configuration of a grid; each ends where `fit` would have brought it.

    The weights of all configurations are stacked, `torch.func.vmap` runs them as one network, and one backward pass of
    the sum of their losses gives every configuration its own gradient. That is many times faster than one after the
    other, and the same up to rounding.

    Args:
        make_model: builds one network; called for each configuration with torch's generator seeded by its seed.
        data: as for `fit`; with a `.test` split the table has test_loss and test_accuracy.
        grid: dict of lists (all combinations, the last key varying fastest) or list of dicts. The keys seed, lr,
            weight_decay, momentum (SGD) and loss replace the arguments below; label_noise is the rate of uniformly
            flipped labels in the training split, drawn by the seed; any other key is passed to the loss by name.
        loss: `loss(logits, target, **arguments)` -> scalar, for configurations that name none.
        epochs, batch_size, lr, weight_decay, optimizer, momentum, schedule, seed, penalty, device, eval_every: as for
            `fit`.
        keep: epochs after which the networks are kept as they are, for `SweepResult.kept`; takes the memory of all
            weights for each.
        progress: show a bar; None shows it in a terminal or a live notebook.
        method: "vmap" trains all at once, "loop" calls `fit` for each. "auto" takes vmap unless there is one
            configuration, or the network or a loss does not allow it (batch normalisation, dropout, a loss that
            branches on values or keeps a state); a warning then says why.
        chunk: configurations trained at once; None takes as many as fit a modest part of the memory. A chunk that does
            not fit the memory is trained in halves, as are those after it; a warning says so.
        client: `distributed.Client` of a Dask cluster, whose workers then train chunks of the grid: `chunk`
            configurations each, by default four chunks a thread. They need this package and torch, and are best started
            with one thread each. A chunk of a worker that is lost is trained again by another. The table is the same as
            without, up to the rounding that another chunk makes.
        checkpoint: folder to which each chunk is written when it is trained. A sweep that finds configurations of its
            own there, with the same data and settings, takes them and trains the others: one that was killed ends with
            the result of an uninterrupted one, bit for bit on a CPU if no other argument has changed, and a grid may
            grow. One sweep at a time may use it.

        compile: let torch.compile make one program of a step's forward and backward pass, which the chunks with the
            same losses and sizes share; the loss must then compute the same at every call. Pays in long trainings only:
            it takes some 20 s (on a cluster, for each piece), and a step of 64 to 256 small networks on a CPU then
            takes about three quarters of its time, which is won back after 10,000 steps or so. Where it fails, as
            without a C++ compiler, a warning says so and the plain step goes on.

    Raises:
        ValueError, TypeError: an argument is refused; with method="vmap" also a network or loss that vmap refuses.

    A loss that is a module with a state (buffers that training changes) begins anew in every configuration. A loss that
    draws at random draws its own numbers for every configuration: there vmap and loop agree in distribution only.

    A configuration whose loss becomes NaN or infinite does not disturb the others; the table names the epoch.

    Source: functorch's "model ensembling" tutorial, pytorch.org, for vmap over stacked weights.
    """
    settings = Settings(epochs, batch_size, lr, weight_decay, optimizer, momentum, schedule, seed, eval_every)
    function("make_model", make_model)
    one_of("method", method, ("auto", "vmap", "loop"))
    if chunk is not None:
        checks.whole("chunk", chunk, 1)
    for epoch in keep:
        if checks.whole("keep", epoch, 1) > epochs:
            raise ValueError(f"keep asks for epoch {epoch}, but there are {epochs}")
    configs = configurations(grid, loss, settings)
    start = time.perf_counter()
    if client is None:
        place: str | torch.device = pick_device(device)
    else:
        check_client(client)
        place = str(device)
    here = torch.device("cpu") if client else torch.device(place)
    splits = SimpleNamespace(**{name: examples(data, name, here) for name in _splits(data)})
    training = _Training(make_model, penalty, place, frozenset(keep), method, chunk, seed, progress, compile)
    order = _neighbours(configs)
    with ExitStack() as stack:
        parts: list[Part] = []
        done: set[int] = set()
        folder = None
        if checkpoint is not None:
            folder = stack.enter_context(opened(checkpoint, training.identities(splits, configs)))
            parts = [(places, trained.to(here)) for places, trained in folder.parts()]
            done = {i for places, _ in parts for i in places}

        def take(part: Part) -> None:
            if folder is not None:
                folder.add(part)
            parts.append(part)

        todo = [(i, configs[i]) for i in order if i not in done]
        if client is None:
            training(splits, todo, take)
        else:
            _on_cluster(client, training, splits, todo, len(configs), take)
    trained = together(parts)
    seconds = time.perf_counter() - start
    table, history = _frames(configs, trained)
    network = _build(make_model, configs[0]).to(here).eval()

    def networks(state: State) -> dict[str, Any]:
        return {"_network": network, "_make_model": make_model, "_state": state}

    snapshots = {epoch: Networks(**networks(trained.kept[epoch])) for epoch in sorted(trained.kept)}
    return SweepResult(table, history, trained.method, seconds, snapshots, **networks(trained.state))


def _splits(data: Any) -> list[str]:
    return ["train", "val"] + ["test"] * (getattr(data, "test", None) is not None)


def _neighbours(configs: list[Configuration]) -> list[int]:
    """The grid's places so that those with a loss in common follow each other: a chunk then calls few of them."""
    first: dict[tuple[Any, ...], int] = {}
    for config in configs:
        first.setdefault(config.group, len(first))
    return sorted(range(len(configs)), key=lambda i: first[configs[i].group])


# A configuration, and its place in the grid.
_Item = tuple[int, Configuration]


@dataclass(frozen=True)
class _Training:
    """How configurations are trained, here or on a worker: the arguments of `sweep` but for data and grid."""

    make_model: Callable[[], nn.Module]
    penalty: Penalty | None
    device: str | torch.device
    keep: frozenset[int]
    method: str
    chunk: int | None
    seed: int
    progress: bool | None
    compile: bool

    def __call__(self, data: Any, items: list[_Item], take: Callable[[Part], None]) -> None:
        """Train configurations and hand over part after part."""
        if not items:
            return
        device = pick_device(self.device)
        splits = {name: examples(data, name, device) for name in _splits(data)}
        with checks.values(False), own_randomness(self.seed, device):
            job = _Job([config for _, config in items], self.make_model, splits, self.penalty, device, self.keep)
            method = _choose(self.method, job)
            if self.compile:
                job.compiled = {}
            chunk = (self.chunk or _affordable(job)) if method == "vmap" else 1
            chunks = [list(range(i, min(i + chunk, len(items)))) for i in range(0, len(items), chunk)]
            steps = job.configs[0].settings.epochs if method == "vmap" else 1
            with progress_bar(len(chunks) * steps, "sweep", self.progress) as bar:
                while chunks:
                    members = chunks.pop(0)
                    places = [items[i][0] for i in members]
                    try:
                        # What a loss draws depends on the chunk alone, not on how many were trained before it.
                        with own_randomness(self.seed + places[0], device):
                            trained = _vmap(job, members, bar.update) if method == "vmap" else _loop(job, members[0])
                    except (RuntimeError, MemoryError) as error:
                        # Nothing of the chunk is left: it begins with its networks built anew.
                        chunks = _halves([members, *chunks], error)
                        bar.total = bar.n + len(chunks) * steps
                        continue
                    bar.update(method == "loop")
                    for epoch, state in [(job.configs[0].settings.epochs, trained.state), *trained.kept.items()]:
                        _forget(state, [row for row, since in trained.diverged.items() if since <= epoch])
                    tests = [
                        _test(job, job.configs[i], trained.state, row, row in trained.diverged)
                        for row, i in enumerate(members)
                    ]
                    take((places, replace(trained, tests=tests)))

    def identities(self, data: Any, configs: list[Configuration]) -> list[Identity]:
        """What makes each configuration itself, for the folder that keeps it."""
        cpu = torch.device("cpu")
        splits = {name: examples(data, name, cpu) for name in _splits(data)}
        shared = {
            "data": checkpoints.digest({f"{k}.{name}": v[k] for name, v in splits.items() for k in (0, 1)}),
            "keep": sorted(self.keep),
        }
        weights: dict[int, tuple[Outputs, str]] = {}
        found = []
        featured = any(asks_for(config.loss, "features") for config in configs)
        for config in configs:
            seed = config.settings.seed
            if seed not in weights:
                model = _build(self.make_model, config)
                network = Outputs(model, self.penalty, with_features=featured)
                weights[seed] = network, checkpoints.digest(_tensors(model))
            network, initial = weights[seed]
            objective, _ = probe(network, config.bound_loss, splits["train"])
            found.append(
                Identity(checkpoints.fingerprint({**config.identity, **shared, "weights": initial}), objective)
            )
        return found


def _on_cluster(
    client: Client,
    training: _Training,
    data: Any,
    items: list[_Item],
    whole: int,
    take: Callable[[Part], None],
) -> None:
    """The same by the workers of a cluster, `whole` configurations in all; the weights end on the CPU."""
    size = training.chunk or piece_size(client, whole)
    quiet = replace(training, progress=False)
    with progress_bar(whole, "sweep", training.progress) as bar:
        bar.update(whole - len(items))
        for _, future in in_pieces(client, _Remotely(quiet), data, items, size):
            part = future.result()
            take(part)
            bar.update(len(part[0]))


@dataclass(frozen=True)
class _Remotely:
    training: _Training

    def __call__(self, data: Any, items: list[_Item]) -> Part:
        parts: list[Part] = []
        self.training(data, items, parts.append)
        places = [place for place, _ in items]
        row = {place: i for i, place in enumerate(places)}
        cpu = torch.device("cpu")
        return places, together([([row[place] for place in part], trained.to(cpu)) for part, trained in parts])


class _Job:
    """What both methods train: configurations, their initial networks, data and noisy labels."""

    def __init__(
        self,
        configs: list[Configuration],
        make_model: Callable[[], nn.Module],
        splits: dict[str, Examples],
        penalty: Penalty | None,
        device: torch.device,
        keep: frozenset[int],
    ) -> None:
        self.configs, self.make_model, self.splits, self.penalty = configs, make_model, splits, penalty
        self.device, self.keep = device, keep
        # Steps by losses and sizes, if they are to be compiled.
        self.compiled: dict[Any, Callable[..., list[Tensor]]] | None = None
        featured = any(asks_for(config.loss, "features") for config in configs)
        # Says how all networks are made; its weights change with whoever looks at one of them.
        self.model = _build(make_model, configs[0])
        self.network = Outputs(self.model, penalty, with_features=featured).to(device)
        # Each configuration, because inside vmap a loss cannot look at its arguments to refuse them.
        for config in configs:
            if module := module_of(config.loss):
                module.to(device)
            _, self.num_classes = probe(self.network, config.bound_loss, splits["train"])
        for name, split in splits.items():
            check_labels(f"{name}.y", split.y, self.num_classes)
        self.budget = torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else _CPU_BYTES
        self.row_bytes = self._row_bytes()

    def models(self, members: list[int]) -> list[nn.Module]:
        """The initial networks of these configurations."""
        shapes = _shapes(self.model)
        before = self.model
        models = []
        for i in members:
            model = _build(self.make_model, self.configs[i])
            if model is before:
                raise ValueError("make_model must build a new network each time, but returns the same one twice")
            if _shapes(model) != shapes:
                raise ValueError("make_model must build one architecture, but its networks differ in a weight's shape")
            models.append(model)
            before = model
        return models

    def labels(self, members: list[int]) -> Tensor:
        """Training labels of these configurations, (R, N); rows share memory where no label is flipped."""
        y = self.splits["train"].y
        settings = [(self.configs[i].label_noise, self.configs[i].settings.seed) for i in members]
        if not any(noise for noise, _ in settings):
            return y.expand(len(members), -1)
        from lossbook.data import flip_labels

        rows = [flip_labels(y.cpu(), noise, self.num_classes, seed=seed)[0] for noise, seed in settings]
        return torch.stack(rows).to(self.device)

    def _row_bytes(self) -> int:
        """Memory that one example takes in a forward pass of one network: what autograd keeps, and the example."""
        x = self.splits["train"].x[:64]
        weights = {p.untyped_storage().data_ptr() for p in self.network.parameters()}
        kept = x.nbytes

        def keep(tensor: Tensor) -> Tensor:
            nonlocal kept
            if tensor.untyped_storage().data_ptr() not in weights:
                kept += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self.network(x)
        return -(-kept // len(x))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, buffers that state_dict leaves out included."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.no_grad()
def _load(model: nn.Module, state: dict[str, Tensor]) -> None:
    for name, tensor in _tensors(model).items():
        tensor.copy_(state[name])


def _stacked(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def _forget(state: dict[str, Tensor], diverged: list[int]) -> None:
    """Weights of diverged configurations become NaN."""
    for value in state.values():
        if value.is_floating_point():
            value[diverged] = float("nan")


def _build(make_model: Callable[[], nn.Module], config: Configuration) -> nn.Module:
    with own_randomness(config.settings.seed, torch.device("cpu")):
        model = make_model()
    if not isinstance(model, nn.Module):
        raise TypeError(f"make_model must return a torch.nn.Module, but returns {type(model).__name__}")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"make_model builds {type(model).__name__}, which has no parameter that trains")
    return model


def _shapes(model: nn.Module) -> dict[str, Any]:
    return {name: (value.shape, value.dtype) for name, value in _tensors(model).items()}


def _choose(method: str, job: _Job) -> str:
    """vmap or loop; says in a warning why vmap is out of the question."""
    if method == "loop" or (method == "auto" and len(job.configs) == 1):
        return "loop"
    reason = _refusal(job)
    if reason is None:
        return "vmap"
    if method == "vmap":
        raise ValueError(f"method='vmap' is not possible here: {reason}")
    warnings.warn(f"sweep trains one configuration after the other, because {reason}", stacklevel=3)
    return "loop"


def _refusal(job: _Job) -> str | None:
    """Why this network with these losses cannot be trained by vmap, or None."""
    model = job.model
    for loss in {id(config.loss): config.bound_loss for config in job.configs}.values():
        if asks_for(loss, "index") or _changes(loss, job):
            return f"{loss_name(loss)} keeps a state"
    if len({p.dtype for p in model.parameters()}) > 1:
        return "the network has parameters of several dtypes"
    batch = Examples(*(part[:8] for part in job.splits["train"]))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with own_randomness(0, job.device), torch.no_grad():
        job.network.train()(batch.x)
    changed = [name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])]
    for name, buffer in model.named_buffers():
        buffer.copy_(before[name])
    if changed:
        return f"training changes the network's buffer {changed[0]!r} (running statistics)"
    first = {config.group: i for i, config in reversed(list(enumerate(job.configs)))}
    for i in first.values():
        job.models([i])  # what is wrong with make_model is not for the loop to report
        try:
            stack = _Stack(job, [i])
            stack.gradient(batch.x, batch.y.expand(1, -1))
        except Exception as error:  # whatever vmap cannot do, the loop can, or reports itself
            sentence = " ".join(str(error).split())
            return f"vmap refuses {loss_name(job.configs[i].loss)} or the network ({sentence[:160]})"
    return None


def _changes(loss: Loss, job: _Job) -> bool:
    """Whether a step of training changes a buffer of the loss."""
    loss = copy.deepcopy(loss) if module_of(loss) else loss
    module = module_of(loss)
    if module is None or not list(module.buffers()):
        return False
    before = [buffer.clone() for buffer in module.to(job.device).train().buffers()]
    batch = Examples(*(part[:8] for part in job.splits["train"]))
    with torch.no_grad():
        logits, features, _ = job.network.eval()(batch.x)
        loss(logits, batch.y, **({"features": features} if asks_for(loss, "features") else {}))
    return not all(torch.equal(*pair) for pair in zip(before, module.buffers(), strict=True))


def _loop(job: _Job, i: int) -> Trained:
    """Configuration i by `fit`."""
    (model,) = job.models([i])
    config, train = job.configs[i], job.splits["train"]
    data = SimpleNamespace(train=Examples(train.x, job.labels([i])[0]), val=job.splits["val"])
    snapshots: dict[int, State] = {}
    diverged: dict[int, int] = {}

    def keep(epoch: int, model: nn.Module) -> None:
        if epoch in job.keep:
            snapshots[epoch] = _copy(model)

    arguments = {**vars(config.settings), "penalty": job.penalty, "device": job.device, "progress": False}
    # Each configuration begins with the loss as it was given: a stateful one is copied.
    loss = copy.deepcopy(config.bound_loss) if module_of(config.loss) else config.bound_loss
    try:
        history = fit(model, data, loss, callback=keep, **arguments)
    except Diverged as error:
        history, diverged[0] = error.history, error.epoch
    rows = history[["epoch", *_METRICS]].itertuples(index=False)
    records = [(0, int(epoch), tuple(metrics)) for epoch, *metrics in rows]
    # Those after the epoch in which it diverged are forgotten.
    kept = {epoch: _stacked([snapshots.get(epoch) or _copy(model)]) for epoch in job.keep}
    return Trained("loop", _stacked([_copy(model)]), kept, records, diverged, [])


def _copy(model: nn.Module) -> State:
    return {name: value.detach().clone() for name, value in _tensors(model).items()}


def _vmap(job: _Job, members: list[int], epoch_done: Callable[[], Any]) -> Trained:
    """These configurations at once."""
    _keep_freed_memory(job.device)
    records: list[Record] = []
    diverged: dict[int, int] = {}
    kept: dict[int, State] = {}
    stack = _Stack(job, members)
    for epoch, bad, metrics in stack.train():
        for row, is_bad in enumerate(bad):
            if is_bad:
                diverged.setdefault(row, epoch)
        if metrics is not None:
            of_rows = enumerate(metrics.T.tolist())
            records += [(row, epoch, tuple(numbers)) for row, numbers in of_rows if row not in diverged]
        if epoch in job.keep:
            kept[epoch] = {name: value.clone() for name, value in stack.state().items()}
        epoch_done()
    return Trained("vmap", stack.state(), kept, sorted(records), diverged, [])


def _keep_freed_memory(device: torch.device) -> None:
    """Let glibc reuse the pages of freed tensors instead of returning them to the system after each step.

    Its threshold for doing so follows the largest block freed so far, up to 32 MiB; returned pages have to be zeroed
    and mapped again, which costs a third of a step. Nothing touches the block, so it takes no memory.
    """
    if device.type == "cpu":
        torch.empty(31 * 2**20, dtype=torch.uint8)


def _halves(chunks: list[list[int]], error: Exception) -> list[list[int]]:
    """Chunks of half the size, where the first one has not fit the memory; any other error is raised."""
    if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in str(error):
        raise error
    size = len(chunks[0])
    if size == 1:
        raise MemoryError("a network of the sweep does not fit the memory: try a smaller batch_size") from error
    half = -(-size // 2)
    warnings.warn(
        f"{size} networks at once do not fit the memory; sweep goes on with {half}: chunk={half} spares the attempt",
        stacklevel=4,
    )
    return [part for chunk in chunks for part in (chunk[:half], chunk[half:]) if part]


def _affordable(job: _Job) -> int:
    """Configurations whose training step fits the memory set aside for it."""
    rows = job.configs[0].settings.rows(len(job.splits["train"].x))
    weights = 6 * sum(p.nbytes for p in job.network.parameters())  # with gradients, moments and scratch
    return max(1, job.budget // (rows * job.row_bytes + weights))


@dataclass(frozen=True)
class _Group:
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


class _Stack:
    """R networks as one: weights with a leading dimension R, trained on R batches, one for each."""

    def __init__(self, job: _Job, members: list[int]) -> None:
        self.network, self.splits, self.budget, self.row_bytes = job.network, job.splits, job.budget, job.row_bytes
        self.configs = [job.configs[i] for i in members]
        self.settings = self.configs[0].settings
        self.labels = job.labels(members)
        states = [_tensors(model) for model in job.models(members)]
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
        self.groups: list[_Group] = []
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
            self.groups.append(_Group(key, len(members), loss, asks_for(loss, "features")))
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


def _frames(configs: list[Configuration], trained: Trained) -> tuple[Any, Any]:
    """The table and the history."""
    import pandas as pd

    keys = list(dict.fromkeys(key for config in configs for key in config.row))
    rows = [config.described(keys) for config in configs]
    history = pd.DataFrame(
        [
            {"configuration": i, **rows[i], "epoch": epoch, **dict(zip(_METRICS, metrics, strict=True))}
            for i, epoch, metrics in trained.records
        ],
        columns=["configuration", *keys, "epoch", *_METRICS],
    )
    last = {i: dict(zip(_METRICS, metrics, strict=True)) for i, _, metrics in trained.records}
    for i in trained.diverged:
        last[i] = dict.fromkeys(_METRICS, float("nan"))
    for i, test in enumerate(trained.tests):
        if test is not None:
            last[i]["test_loss"], last[i]["test_accuracy"] = test
    table = pd.DataFrame([{**row, **last[i]} for i, row in enumerate(rows)], columns=[*keys, *last[0]])
    table["diverged"] = pd.array([trained.diverged.get(i) for i in range(len(rows))], dtype="Int64")
    return table, history


def _test(job: _Job, config: Configuration, state: State, row: int, diverged: bool) -> tuple[float, float] | None:
    if "test" not in job.splits:
        return None
    if diverged:
        return float("nan"), float("nan")
    _load(job.model, {name: value[row] for name, value in state.items()})
    return evaluate(job.network.eval(), config.bound_loss, job.splits["test"])
