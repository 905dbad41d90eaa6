"""A small picture of each loss, drawn from the loss itself, and what one sees in it, in words."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SIZE = (192, 144)  # CSS pixels; the file has twice as many each way
_STEPS = 17
Loss = Callable[..., Any]


@dataclass(frozen=True)
class Drawn:
    text: str  # the alternative text, or the reason why there is no picture
    exists: bool


@dataclass(frozen=True)
class _Plane:
    """A loss over two numbers. value[i, j] belongs to y[i] and x[j]."""

    x: Tensor
    y: Tensor
    value: Tensor
    x_label: str
    y_label: str


@dataclass(frozen=True)
class _Line:
    x: Tensor
    value: Tensor
    x_label: str


def draw(name: str, loss: Loss, path: Path) -> Drawn:
    """Draw the loss into path, as WebP; for one that no picture of two axes can show, say why."""
    if name in _WITHOUT:
        return Drawn(f"No picture: {_WITHOUT[name]}.", exists=False)
    view = _VIEWS.get(name) or _default_view(loss)
    if view is None:
        return Drawn("No picture: it takes more than two axes can show.", exists=False)
    with torch.no_grad():
        seen = view(loss)
    _paint(seen, path)
    return Drawn(f"{name}: {_in_words(seen)}.", exists=True)


def _default_view(loss: Loss) -> Callable[[Loss], _Plane | _Line] | None:
    parameters = inspect.signature(loss).parameters.values()
    needed = [one.name for one in parameters if one.default is one.empty and one.kind is not one.VAR_KEYWORD]
    views: dict[tuple[str, ...], Callable[[Loss], _Plane | _Line]]
    views = {("logits", "target"): _logits, ("scores", "target"): _scores}
    return views.get(tuple(needed))


def _grid(low: float, high: float) -> tuple[Tensor, Tensor, Tensor]:
    """The axis, and all pairs (x, y) as two columns, y outermost."""
    axis = torch.linspace(low, high, _STEPS, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return axis, x.flatten(), y.flatten()


def _plane(low: float, high: float, of: Callable[[Tensor, Tensor], Tensor], x_label: str, y_label: str) -> _Plane:
    """of takes columns x and y and returns a value each."""
    axis, x, y = _grid(low, high)
    return _Plane(axis, axis, of(x, y).reshape(_STEPS, _STEPS), x_label, y_label)


def _one_by_one(of: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """For a loss of a whole batch: one call for each point."""
    return lambda x, y: torch.stack([of(a, b) for a, b in zip(x, y, strict=True)])


def _logits(loss: Loss, **more: Any) -> _Plane:
    def value(x: Tensor, y: Tensor) -> Tensor:
        logits = torch.stack([torch.zeros_like(x), -x, -y], dim=1)
        # Some losses read the level of the logits: their sum is 0.
        logits = logits - logits.mean(dim=1, keepdim=True)
        return loss(logits, torch.zeros(len(x), dtype=torch.long), reduction="none", **more)

    return _plane(-4, 4, value, "z_y − z_1", "z_y − z_2")


def _scores(loss: Loss) -> _Line:
    score = torch.linspace(-4, 4, 161, dtype=torch.float64)
    return _Line(score, loss(score, torch.ones(len(score), dtype=torch.long), reduction="none"), "score of the label")


def _batchwise_logits(loss: Loss) -> _Plane:
    def value(x: Tensor, y: Tensor) -> Tensor:
        return loss(torch.stack([torch.zeros_like(x), -x, -y])[None], torch.zeros(1, dtype=torch.long))

    return _plane(-4, 4, _one_by_one(value), "z_y − z_1", "z_y − z_2")


def _adversarial(loss: Loss) -> _Plane:
    """The move takes half of every margin away."""
    moved = lambda logits, target, **more: loss(logits, logits / 2, target, **more)  # noqa: E731
    return _logits(moved)


def _two_rows(loss: Loss) -> _Plane:
    """A metric of a batch of one positive and one negative."""
    target = torch.tensor([1, 0])
    value = _one_by_one(lambda x, y: loss(torch.stack([x, y]), target))
    return _plane(-4, 4, value, "logit of a positive", "of a negative")


def _embedding(angle: Tensor) -> Tensor:
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def _two_views(call: Callable[[Loss, Tensor, Tensor], Tensor]) -> Callable[[Loss], _Plane]:
    """Two examples on a circle, seen twice: over the angle between the views and that between the examples."""

    def view(loss: Loss) -> _Plane:
        def value(theta: Tensor, phi: Tensor) -> Tensor:
            zero = torch.zeros_like(theta)
            first, second = torch.stack([zero, phi]), torch.stack([theta, phi + theta])
            return call(loss, _embedding(first.deg2rad()), _embedding(second.deg2rad()))

        return _plane(0, 180, _one_by_one(value), "° between views", "° between examples")

    return view


def _similarity(loss: Loss) -> _Plane:
    """Two anchors: over the similarity of each to its positive and to its one negative."""
    value = _one_by_one(lambda x, y: loss(torch.stack([torch.stack([x, y]), torch.stack([y, x])])))
    return _plane(-1, 1, value, "to the positive", "to the negative")


def _student(loss: Loss) -> _Plane:
    """Over the student's logits; the teacher's are 0, -1 and -2."""
    teacher = torch.tensor([0.0, -1.0, -2.0], dtype=torch.float64)

    def value(x: Tensor, y: Tensor) -> Tensor:
        return loss(torch.stack([torch.zeros_like(x), -x, -y], dim=1), teacher.repeat(len(x), 1), reduction="none")

    return _plane(-4, 4, value, "z_1 − z_2", "z_1 − z_3")


def _past(loss: Loss) -> _Plane:
    past = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64).expand(_STEPS**2, -1)
    return _logits(loss, past_probs=past, alpha=0.5)


def _direction(loss: Loss) -> _Plane:
    """Over the student's features in the plane; the class mean points right, the teacher's features have length 1."""

    def value(x: Tensor, y: Tensor) -> Tensor:
        student, right = torch.stack([x, y], dim=1), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        target = torch.zeros(len(x), dtype=torch.long)
        return loss(student, right.repeat(len(x), 1), target, right, reduction="none")

    return _plane(-2, 2, value, "along the mean", "across")


def _pair_of_scores(loss: Loss) -> _Plane:
    value = _one_by_one(lambda x, y: loss(x[None], y[None]))
    return _plane(-4, 4, value, "score of a positive", "of a negative")


def _cluster(loss: Loss) -> _Plane:
    mask = torch.tensor([[True, False]])
    value = _one_by_one(lambda x, y: loss(torch.stack([x, y])[None], mask))
    return _plane(-4, 4, value, "score of a positive", "of a negative")


def _node(loss: Loss) -> _Line:
    score = torch.linspace(-4, 4, 161, dtype=torch.float64)
    return _Line(score, loss(score, reduction="none"), "score of a node")


def _quantile(loss: Loss) -> _Line:
    error = torch.linspace(-3, 3, 121, dtype=torch.float64)
    value = loss(error[:, None], torch.zeros_like(error), quantiles=[0.9], reduction="none")
    return _Line(error, value.flatten(), "prediction − y, level 0.9")


def _crossing(loss: Loss) -> _Line:
    gap = torch.linspace(-3, 3, 121, dtype=torch.float64)
    return _Line(gap, loss(torch.stack([torch.zeros_like(gap), gap], dim=1), reduction="none"), "g_2 − g_1")


def _bag(loss: Loss) -> _Plane:
    """A bag of two whose mean response is 0."""
    response, index = torch.zeros(1, dtype=torch.float64), torch.zeros(2, dtype=torch.long)
    value = _one_by_one(lambda x, y: loss(torch.stack([x, y]), response, index))
    return _plane(-3, 3, value, "prediction 1", "prediction 2")


def _patches(loss: Loss) -> _Plane:
    """Over the predictions for two patches; the first one is the harder."""
    harder = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    value = _one_by_one(lambda x, y: loss(torch.stack([x, y])[None], harder))
    return _plane(-3, 3, value, "for the harder patch", "for the other")


def _poincare(loss: Loss) -> _Line:
    half = torch.linspace(0, 1.4, 121, dtype=torch.float64)
    points = torch.stack([half, torch.zeros_like(half)], dim=1)
    value = torch.stack([loss(torch.stack([p, -p])) for p in points])
    return _Line(2 * half, value, "distance in the ball")


def _correlated(call: Callable[[Loss, Tensor, Tensor], Tensor]) -> Callable[[Loss], _Line]:
    """64 random embeddings of 4 numbers, over the correlation of the two views."""

    def view(loss: Loss) -> _Line:
        generator = torch.Generator().manual_seed(0)
        first, noise = torch.randn(2, 64, 4, dtype=torch.float64, generator=generator)
        rho = torch.linspace(-1, 1, 41, dtype=torch.float64)
        values = [call(loss, first, r * first + (1 - r * r).sqrt() * noise) for r in rho]
        return _Line(rho, torch.stack(values), "correlation of views")

    return view


def _dino(loss: Loss) -> _Plane:
    """The teacher's logits are 0, -0.05 and -0.1: sharpened, 0.70, 0.20 and 0.06 or so."""
    teacher = torch.tensor([0.0, -0.05, -0.1], dtype=torch.float64).expand(2, 1, 3)

    def value(x: Tensor, y: Tensor) -> Tensor:
        student = torch.stack([torch.zeros_like(x), -x, -y]).expand(2, 1, 3)
        return loss(student, teacher, torch.zeros(3, dtype=torch.float64))

    return _plane(-0.4, 0.4, _one_by_one(value), "S_1 − S_2", "S_1 − S_3")


def _supervised(call: Callable[[Loss, Tensor, Tensor], Tensor]) -> Callable[[Loss], _Plane]:
    """Two classes of two examples on a circle."""

    def view(loss: Loss) -> _Plane:
        target = torch.tensor([0, 0, 1, 1])

        def value(theta: Tensor, phi: Tensor) -> Tensor:
            zero = torch.zeros_like(theta)
            return call(loss, _embedding(torch.stack([zero, theta, phi, phi + theta]).deg2rad()), target)

        return _plane(0, 180, _one_by_one(value), "° within a class", "° between classes")

    return view


def _class_vectors(loss: Loss) -> _Plane:
    """An example of the first of two classes: over its angle to the own class vector, and that of the other vector."""

    def value(theta: Tensor, phi: Tensor) -> Tensor:
        weight = _embedding(torch.stack([torch.zeros_like(phi), phi]).deg2rad())
        return loss(_embedding(theta.deg2rad())[None], weight, torch.zeros(1, dtype=torch.long))

    return _plane(0, 180, _one_by_one(value), "° of the example", "° of the other class")


def _heads(loss: Loss, first: Tensor, second: Tensor) -> Tensor:
    one = torch.ones(1, 2, dtype=torch.float64)
    return loss(first[None], second[None], one, one[:, None].expand(1, 2, 2))


def _linear(loss: Loss) -> _Plane:
    """Features that are the logits: the head is the identity."""
    head = torch.eye(3, dtype=torch.float64)
    return _logits(lambda logits, target, **more: loss(logits, head, target, **more))


def _stacked(loss: Loss, first: Tensor, second: Tensor) -> Tensor:
    return loss(torch.stack([first, second]))


def _both(loss: Loss, first: Tensor, second: Tensor) -> Tensor:
    return loss(first, second)


_VIEWS: dict[str, Callable[[Loss], _Plane | _Line]] = {
    "absolute_loss_prediction": _patches,
    "amcl_loss": _two_views(_heads),
    "anyloss": _two_rows,
    "bag_loss": _bag,
    "balanced_divergence": _student,
    "barlow_twins_loss": _correlated(_both),
    "binary_kl": _student,
    "binary_kl_norm": _student,
    "cacr_loss": _two_views(_stacked),
    "crossing_penalty": _crossing,
    "cwcl_loss": _two_views(_both),
    "decoupled_contrastive_loss": _two_views(_both),
    "dino_loss": _dino,
    "eckart_young": _correlated(_stacked),
    "forward_kl": _student,
    "groco_loss": _two_views(lambda loss, a, b: loss(torch.stack([a, b]), num_negatives=1)),
    "hard_contrastive": _similarity,
    "hard_simple_contrastive": _similarity,
    "info_nce": _similarity,
    "info_nce_bound": _similarity,
    "linear_cross_entropy": _linear,
    "mann_whitney": _pair_of_scores,
    "mann_whitney_in_batch": _similarity,
    "mmce_penalty": _batchwise_logits,
    "multi_label_cluster_loss": _cluster,
    "norm_direction": _direction,
    "normalized_softmax": _class_vectors,
    "nt_xent": _two_views(_both),
    "pairwise_confusion": _poincare,
    "pinball": _quantile,
    "pot_loss": _node,
    "pskd": _past,
    "relative_loss_prediction": _patches,
    "reverse_kl": _student,
    "simple_contrastive": _similarity,
    "smooth_adversarial_comp_sum": _adversarial,
    "supcon": _two_views(_stacked),
    "triplet": _supervised(lambda loss, x, y: loss(x, y)),
    "vicreg": _correlated(_both),
}
_WITHOUT = {
    "BackwardCompatible": "it is what backward_compatible returns",
    "Criterion": "it makes a module of any of the functions",
    "IndividualTemperatureLoss": "it keeps a temperature for every example, which moves as it is called",
    "LossGate": "it is what loss_gate returns",
    "backward_compatible": "it adds up four terms, of an old model, a new one and the one that is trained",
    "bias_loss": "it is cross-entropy, each row weighed by the spread of its features",
    "cross_correlation": "it gives a matrix",
    "differentiable_sort": "it gives sorted rows and a permutation",
    "ensloss": "its curve is drawn anew at every call",
    "gated_label_correction": "it takes two predictions, a guess of the label and a history of losses",
    "gradient_penalty": "it takes a network, the critic",
    "hyperbolic_cross_entropy": "it is cross-entropy of the logits that a hyperbolic layer gives",
    "loss_gate": "it gives a threshold",
    "mixed_barlow_twins_loss": "it takes three sets of embeddings and how they were mixed",
    "rotation_pretext": "it takes a network and images",
    "soft_confusion": "it gives four counts",
    "wasserstein_predictive_coding": "it takes a network, the critic",
}


def _in_words(seen: _Plane | _Line) -> str:
    if isinstance(seen, _Line):
        x, value, over = seen.x, seen.value, seen.x_label
    else:
        corners = [
            f"{_number(seen.value[i, j])} at ({_at(seen.x[j])}, {_at(seen.y[i])})"
            for i, j in ((0, 0), (0, -1), (-1, 0), (-1, -1))
        ]
        return f"over ({seen.x_label}, {seen.y_label}), {', '.join(corners)}"
    return f"from {_number(value[0])} at {over} {_at(x[0])} to {_number(value[-1])} at {_at(x[-1])}, {_shape(value)}"


def _shape(value: Tensor) -> str:
    bends = value.diff(n=2)
    # What rounding makes of a straight line.
    small = 1e-9 * float(value.abs().max() + 1)
    if (bends.abs() <= small).all():
        return "straight"
    if (bends >= -small).all():
        return "convex"
    return "concave" if (bends <= small).all() else "neither convex nor concave"


def _number(value: Tensor) -> str:
    return f"{float(value):.2g}".replace("-", "−") if abs(float(value)) > 1e-9 else "0"


def _at(value: Tensor) -> str:
    return f"{float(value):g}".replace("-", "−")


def _paint(seen: _Plane | _Line, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(SIZE[0] / 100, SIZE[1] / 100), dpi=200, facecolor="white")
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0.2, 0.25, 0.73, 0.7))
    x = seen.x.numpy()
    if isinstance(seen, _Plane):
        ax.contourf(x, seen.y.numpy(), seen.value.numpy(), levels=14, cmap="viridis")
        ax.set_ylabel(_label(seen.y_label), fontsize=6.5, labelpad=1)
        ax.set_yticks([x[0], (x[0] + x[-1]) / 2, x[-1]])
    else:
        ax.plot(x, seen.value.numpy(), color="#0b5d7a", linewidth=1.4)
        ax.spines[["top", "right"]].set_visible(False)
    ax.set_xticks([x[0], (x[0] + x[-1]) / 2, x[-1]])
    ax.set_xlabel(_label(seen.x_label), fontsize=6.5, labelpad=1)
    ax.tick_params(labelsize=6, length=2, pad=1.5, width=0.5)
    figure.savefig(path, format="webp", pil_kwargs={"quality": 80})


def _label(text: str) -> str:
    """Indices as indices."""
    return "".join(f"${word}$" if "_" in word else f" {word} " for word in text.split(" ")).strip()
