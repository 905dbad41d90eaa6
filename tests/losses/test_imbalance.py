"""Losses from the confusion matrix: hard limits, peers, undefined metrics, gradients, bad input."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torch import Tensor
from torch.func import grad, vmap

from lossbook import checks
from lossbook.losses import anyloss, soft_confusion
from lossbook.losses.imbalance import METRICS
from lossbook.train import sweep

PEERS = {
    "accuracy": sk.accuracy_score,
    "precision": sk.precision_score,
    "recall": sk.recall_score,
    "fbeta": lambda y, p: sk.fbeta_score(y, p, beta=1.0),
    "gmean": lambda y, p: (sk.recall_score(y, p) * sk.recall_score(y, p, pos_label=0)) ** 0.5,
    "balanced_accuracy": sk.balanced_accuracy_score,
    "matthews": sk.matthews_corrcoef,
}
every_metric = pytest.mark.parametrize("metric", METRICS)
NEEDS_BOTH = ("gmean", "balanced_accuracy", "matthews")


def batch(seed: int = 0, n: int = 40, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = (torch.rand(n, generator=generator) < 0.3).long()
    target[:2] = torch.tensor([0, 1])
    return torch.randn(n, dtype=torch.float64, generator=generator).to(dtype), target


def test_every_metric_has_a_peer() -> None:
    assert set(PEERS) == set(METRICS)


@every_metric
@pytest.mark.parametrize("seed", range(5))
def test_steep_limit_is_the_hard_metric(metric: str, seed: int) -> None:
    logits, target = batch(seed)
    logits = torch.where(logits.abs() < 0.05, 0.05 * logits.sign(), logits)
    expected = PEERS[metric](target.numpy(), (logits > 0).long().numpy())
    assert 1 - anyloss(logits, target, metric=metric, scale=1e4).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("beta", [0.5, 2.0, torch.tensor(2.0, dtype=torch.float64)])
def test_beta(beta: float | Tensor) -> None:
    logits, target = batch()
    expected = sk.fbeta_score(target.numpy(), (logits > 0).long().numpy(), beta=float(beta))
    assert 1 - anyloss(logits, target, beta=beta, scale=1e5).item() == pytest.approx(expected, abs=1e-4)


def test_a_row_on_the_border_counts_half() -> None:
    counts = soft_confusion(torch.zeros(3), torch.tensor([1, 0, 0]))
    assert [count.item() for count in counts] == [0.5, 1.0, 0.5, 1.0]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(2, 60), scale=st.floats(0.1, 300))
def test_counts_add_up(seed: int, n: int, scale: float) -> None:
    logits, target = batch(seed, n)
    counts = soft_confusion(logits, target, scale=scale)
    torch.testing.assert_close(counts.tp + counts.fn, target.double().sum())
    torch.testing.assert_close(sum(counts), torch.tensor(float(n), dtype=torch.float64))
    assert min(counts) >= 0


@every_metric
def test_gradcheck(metric: str) -> None:
    logits, target = batch(n=10)
    assert torch.autograd.gradcheck(lambda z: anyloss(z, target, metric=metric, scale=6.0), logits.requires_grad_(True))


def test_slope_of_a_count() -> None:
    """dh/dz = L h (1 - h) p (1 - p), with one positive row: TP is its h."""
    z = torch.tensor([0.1], dtype=torch.float64, requires_grad=True)
    h = soft_confusion(z, torch.ones(1)).tp
    (slope,) = torch.autograd.grad(h, z)
    p = z.detach().sigmoid()
    torch.testing.assert_close(slope[0], (73 * h * (1 - h) * p * (1 - p)).detach()[0])


@every_metric
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_kept(metric: str, dtype: torch.dtype) -> None:
    logits, target = batch(dtype=dtype)
    value = anyloss(logits, target, metric=metric)
    assert value.dtype == dtype
    expected = anyloss(logits.double(), target, metric=metric)
    tolerance = max(4 * torch.finfo(dtype).eps, 1e-5)
    torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=tolerance)


@every_metric
@pytest.mark.parametrize("level", [1e4, -1e4, 0.0])
@pytest.mark.parametrize("scale", [73.0, 1e4])
def test_constant_and_extreme_logits(metric: str, level: float, scale: float) -> None:
    """All rows far on one side: counts that underflow to zero, and still a finite value and gradient."""
    logits = torch.full((6,), level, requires_grad=True)
    value = anyloss(logits, torch.tensor([0, 0, 1, 0, 1, 0]), metric=metric, scale=scale)
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.isfinite() and gradient.isfinite().all()
    if metric == "matthews":
        assert value.item() == pytest.approx(1, abs=1e-3)


@every_metric
@pytest.mark.parametrize("label", [0, 1])
def test_one_class_only(metric: str, label: int) -> None:
    logits = batch(n=8)[0].requires_grad_(True)
    target = torch.full((8,), label)
    undefined = metric in NEEDS_BOTH or (metric == "recall" and label == 0)
    if undefined:
        with pytest.warns(
            UserWarning, match=f"{metric} is undefined in a batch without a {'negative' if label else 'positive'}"
        ):
            value = anyloss(logits, target, metric=metric)
        assert value.item() == 0
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            value = anyloss(logits, target, metric=metric)
    (gradient,) = torch.autograd.grad(value, logits)
    assert gradient.isfinite().all()
    assert not undefined or (gradient == 0).all()
    if metric in ("fbeta", "precision") and label == 0:
        assert value.item() == 1 and (gradient == 0).all()


def test_undefined_under_vmap_is_zero_in_that_row_only() -> None:
    logits, _ = batch(n=6)
    targets = torch.tensor([[0, 0, 0, 0, 0, 0], [1, 0, 0, 1, 0, 0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradients = vmap(grad(lambda z, y: anyloss(z, y, metric="recall")), in_dims=(None, 0))(logits, targets)
    assert (gradients[0] == 0).all()
    torch.testing.assert_close(gradients[1], grad(lambda z: anyloss(z, targets[1], metric="recall"))(logits))
    with checks.values(False), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert anyloss(logits, targets[0], metric="recall").item() == 0


@every_metric
def test_vmap_over_models_and_scale(metric: str) -> None:
    logits, target = batch()
    scales = torch.tensor([10.0, 73.0], dtype=torch.float64)
    got = vmap(grad(lambda z, s: anyloss(z, target, metric=metric, scale=s)), in_dims=(0, 0))(
        torch.stack([logits, 2 * logits]), scales
    )
    want = [
        grad(lambda z, s=s: anyloss(z, target, metric=metric, scale=s))(f)
        for f, s in ((logits, 10.0), (2 * logits, 73.0))
    ]
    torch.testing.assert_close(got, torch.stack(want))


@every_metric
def test_compiles_without_graph_breaks(metric: str) -> None:
    torch._dynamo.reset()
    logits, target = batch(dtype=torch.float32)
    compiled = torch.compile(lambda z, y: anyloss(z, y, metric=metric), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, target), anyloss(logits, target, metric=metric))


def test_trains_in_a_sweep() -> None:
    """Two logits have the score f_1 - f_0."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, generator=generator)
    y = (x[:, 0] > 1).long()
    split = (x, y)
    data = type("Data", (), {"train": split, "val": split})

    def f1_loss(logits: Tensor, target: Tensor, scale: float = 73.0) -> Tensor:
        return anyloss(logits[:, 1] - logits[:, 0], target, scale=scale)

    trained = sweep(
        lambda: torch.nn.Linear(2, 2), data, {"scale": [10.0, 73.0], "seed": [0, 1]}, loss=f1_loss, epochs=30,
        batch_size=None, lr=0.05, progress=False,
    )  # fmt: skip
    assert trained.method == "vmap"
    first = trained.history.query("epoch == 1")["train_loss"].to_numpy()
    assert (trained.table["train_loss"].to_numpy() < first).all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"metric": "f2"}, "metric must be one of accuracy, precision, recall, fbeta"),
        ({"beta": 0.0}, r"beta must lie in \(0, inf\), but is 0"),
        ({"beta": None}, "beta must be a number or a 0-d tensor, but is None"),
        ({"scale": 0}, r"scale must lie in \(0, inf\), but is 0"),
        ({"scale": torch.ones(2)}, "scale must be a number or a 0-d tensor"),
        ({"eps": -1e-3}, r"eps must lie in \[0, inf\)"),
        ({"target": torch.tensor([0, 2, 1])}, r"target must hold 0 and 1, but target\[1\] is 2"),
        ({"target": torch.tensor([0, 1])}, "target must hold one 0 or 1 for each of the 3 scores"),
        ({"logits": torch.zeros(3, 2)}, r"scores must have shape \(N,\)"),
        ({"logits": torch.tensor([0.0, float("nan"), 1.0])}, r"scores\[1\] is nan"),
    ],
)
def test_bad_input_is_refused_by_name(change: dict, sentence: str) -> None:
    arguments = {"logits": torch.zeros(3), "target": torch.tensor([0, 1, 1]), **change}
    with pytest.raises(ValueError, match=sentence):
        anyloss(arguments.pop("logits"), arguments.pop("target"), **arguments)


def test_not_a_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match=r"scores must be a torch\.Tensor, but is list"):
        soft_confusion([0.0], torch.tensor([1]))
