"""`sweep`: train many configurations of one architecture at once, as one network with stacked weights."""

from __future__ import annotations

import copy
import os
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lossbook import checks
from lossbook.losses import cross_entropy
from lossbook.train import checkpoint as checkpoints
from lossbook.train._stack import Stack, tensors
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
        make_model: builds one network; called for each configuration, at times more than once, with torch's generator
            seeded by its seed, which `torch.initial_seed()` tells.
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
            grow. Losses, penalty and network count by name, by the plain values that they hold, and by the first loss
            and penalty: a change of code that shows in none of these is not noticed. One sweep at a time may use it.
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
                    with own_randomness(self.seed + places[0], device):
                        tests = [
                            _test(job, job.configs[i], trained.state, row, row in trained.diverged)
                            for row, i in enumerate(members)
                        ]
                    take((places, replace(trained, tests=tests)))

    def identities(self, data: Any, configs: list[Configuration]) -> list[Identity]:
        """What makes each configuration itself, for the folder that keeps it."""
        # Where a loss that holds tensors works: this machine's device, or with a cluster the CPU.
        device = data.train.x.device
        splits = {name: examples(data, name, device) for name in _splits(data)}
        shared = {
            "data": checkpoints.digest({f"{k}.{name}": v[k] for name, v in splits.items() for k in (0, 1)}),
            "keep": sorted(self.keep),
            "penalty": self.penalty,
        }
        networks: dict[int, tuple[Outputs, str]] = {}
        found = []
        featured = any(asks_for(config.loss, "features") for config in configs)
        for config in configs:
            seed = config.settings.seed
            if seed not in networks:
                model = _build(self.make_model, config)
                key = checkpoints.fingerprint({"model": model})
                networks[seed] = Outputs(model, self.penalty, with_features=featured).to(device), key
            network, key = networks[seed]
            if module := module_of(config.loss):
                module.to(device)
            with own_randomness(seed, device):
                loss, penalty, _ = probe(network, config.bound_loss, splits["train"])
            found.append(Identity(checkpoints.fingerprint({**config.identity, **shared, "model": key}), loss, penalty))
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
        # Closed, so that the workers do not go on when one piece has failed.
        with closing(in_pieces(client, _Remotely(quiet), data, items, size)) as ended:
            for _, future in ended:
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
            *_, self.num_classes = probe(self.network, config.bound_loss, splits["train"])
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


@torch.no_grad()
def _load(model: nn.Module, state: dict[str, Tensor]) -> None:
    for name, tensor in tensors(model).items():
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
    return {name: (value.shape, value.dtype) for name, value in tensors(model).items()}


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
            stack = Stack(job, [i])
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
    return {name: value.detach().clone() for name, value in tensors(model).items()}


def _vmap(job: _Job, members: list[int], epoch_done: Callable[[], Any]) -> Trained:
    """These configurations at once."""
    _keep_freed_memory(job.device)
    records: list[Record] = []
    diverged: dict[int, int] = {}
    kept: dict[int, State] = {}
    stack = Stack(job, members)
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
