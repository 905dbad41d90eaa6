"""RankMixup: values by hand, masks, the order of the mixtures, a peer for DCG, gradients, bad input."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import dcg_score
from torch import Tensor
from torch.func import grad, vmap

from lossbook.losses.calibration import rank_violation_rate, rankmixup_mndcg, rankmixup_mrl

LAM = (0.8, 0.6, 0.5)


def batch(lam: tuple[float, ...] = (0.7,), b: int = 6, k: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Logits, labels and mixtures, row j * b + i a mixture of i with another row."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(k, (b,), generator=generator)
    one_hot = F.one_hot(target, k).double()
    other = [one_hot[torch.randperm(b, generator=generator)] for _ in lam]
    return {
        "logits": 2 * torch.randn(b, k, dtype=torch.float64, generator=generator),
        "mixup_logits": 2 * torch.randn(len(lam) * b, k, dtype=torch.float64, generator=generator),
        "target": target,
        "mixup_target": torch.cat([x * one_hot + (1 - x) * y for x, y in zip(lam, other, strict=True)]),
    }


@pytest.mark.parametrize("space", ["logit", "probability"])
def test_mrl_is_that_of_a_loop(space: str) -> None:
    case = batch()
    rows = rankmixup_mrl(**case, margin=0.5, weight=0.3, space=space, reduction="none")
    masks = set()
    for i, row in enumerate(rows):
        z, mixed = case["logits"][i], case["mixup_logits"][i]
        if space == "probability":
            z, mixed = z.softmax(0), mixed.softmax(0)
        mask = float(case["mixup_target"][i].max() < 0.999)
        masks.add(mask)
        hinge = max(0.0, float(mixed.max() - z.max()) + 0.5)
        want = float(F.cross_entropy(case["logits"][i : i + 1], case["target"][i : i + 1])) + 0.3 * mask * hinge
        assert row.item() == pytest.approx(want)
    assert masks == {0.0, 1.0}
    torch.testing.assert_close(rankmixup_mrl(**case, margin=0.5, weight=0.3, space=space), rows.mean())
    torch.testing.assert_close(rankmixup_mrl(**case, margin=0.5, weight=0.3, space=space, reduction="sum"), rows.sum())


def test_the_masks_agree_where_no_pair_shares_its_label() -> None:
    case = batch()
    assert not torch.isclose(rankmixup_mrl(**case, weight=1.0), rankmixup_mrl(**case, weight=1.0, mask="code"))
    case["mixup_target"] = torch.full_like(case["mixup_target"], 0.25)
    torch.testing.assert_close(rankmixup_mrl(**case, weight=1.0), rankmixup_mrl(**case, weight=1.0, mask="code"))


def test_rounding_does_not_undo_the_mask() -> None:
    """Float32 labels mixed with themselves are not exactly 1."""
    case = {name: value.float() if value.is_floating_point() else value for name, value in batch().items()}
    case["mixup_target"] = F.one_hot(case["target"], 4) * 0.9999999
    torch.testing.assert_close(rankmixup_mrl(**case, margin=50.0), F.cross_entropy(case["logits"], case["target"]))


def test_mrl_has_no_pull_beyond_the_margin() -> None:
    case = batch()
    case["mixup_logits"] = case["mixup_logits"] - 100
    torch.testing.assert_close(rankmixup_mrl(**case), F.cross_entropy(case["logits"], case["target"]))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), lam=st.lists(st.floats(0.05, 0.95), min_size=1, max_size=5))
def test_mndcg_with_scikit_learn(seed: int, lam: list[float]) -> None:
    """Each row from scikit-learn's DCG: the confidences, and the relevances, ranked by relevance."""
    lam = tuple(round(x, 3) for x in lam)
    case = batch(lam, seed=seed)
    rows = rankmixup_mndcg(**case, lam=lam, weight=0.4, reduction="none")
    raw = case["logits"].softmax(1).amax(1)
    mixed = case["mixup_logits"].softmax(1).amax(1).view(len(lam), -1)
    relevance = case["mixup_target"].amax(1).view(len(lam), -1)
    for i, row in enumerate(rows):
        u = torch.cat((raw[i : i + 1], mixed[:, i]))
        r = torch.cat((torch.ones(1), relevance[:, i]))
        # The image first, then by relevance; equal ones in their order.
        place = relevance[:, i].sort(descending=True, stable=True)[1].argsort()
        rank = -torch.cat((torch.tensor([-1]), place))
        dcg = dcg_score(u[None].numpy(), rank[None].numpy())
        idcg = dcg_score(r[None].numpy(), rank[None].numpy())
        ce = float(F.cross_entropy(case["logits"][i : i + 1], case["target"][i : i + 1]))
        assert row.item() == pytest.approx(ce + 0.4 * (1 - min(dcg / idcg, idcg / dcg)), abs=1e-7)


def test_mndcg_is_cross_entropy_where_confidence_is_relevance() -> None:
    """Mixtures whose confidence is max(l, 1 - l) and a certain image: nothing to improve."""
    case = batch(LAM)
    case["mixup_logits"] = (case["mixup_target"] + 1e-30).log()
    case["logits"] = 80 * F.one_hot(case["target"], 4).double()
    assert rankmixup_mndcg(**case, lam=LAM, weight=1.0).item() == pytest.approx(0.0, abs=1e-12)


def test_mndcg_goes_by_the_mixed_targets_not_by_lam() -> None:
    """l and 1 - l are the same mixture; the order of the mixtures does not matter."""
    case = batch(LAM)
    value = rankmixup_mndcg(**case, lam=LAM)
    torch.testing.assert_close(rankmixup_mndcg(**case, lam=torch.tensor([0.2, 0.6, 0.5])), value)
    order = [2, 0, 1]
    for name in ("mixup_logits", "mixup_target"):
        case[name] = case[name].view(3, -1, 4)[order].flatten(0, 1)
    torch.testing.assert_close(rankmixup_mndcg(**case, lam=[LAM[j] for j in order]), value)


LOSSES = {
    "mrl": (rankmixup_mrl, {}, (0.7,)),
    "mrl_probability": (rankmixup_mrl, {"space": "probability", "margin": 0.3}, (0.7,)),
    "mndcg": (rankmixup_mndcg, {"lam": LAM}, LAM),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_reach_both_sets_of_logits(name: str) -> None:
    loss, arguments, lam = LOSSES[name]
    case = batch(lam)
    raw, mixed = case.pop("logits").requires_grad_(True), case.pop("mixup_logits").requires_grad_(True)

    def value(f: Tensor, g: Tensor) -> Tensor:
        return loss(f, g, **case, weight=1.0, **arguments)

    assert torch.autograd.gradcheck(value, (raw, mixed))
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(value(raw, mixed), (raw, mixed)))


@pytest.mark.parametrize("name", LOSSES)
def test_dtype_vmap_and_extremes(name: str) -> None:
    loss, arguments, lam = LOSSES[name]
    case = batch(lam)
    narrow = {key: value.bfloat16() if "logits" in key else value for key, value in case.items()}
    wide = {key: value.double() if "logits" in key else value for key, value in narrow.items()}
    assert loss(**narrow, **arguments).dtype == torch.bfloat16
    torch.testing.assert_close(loss(**narrow, **arguments), loss(**wide, **arguments).bfloat16(), rtol=0.02, atol=0.02)
    raw, rest = case["logits"], {key: value for key, value in case.items() if key != "logits"}
    gradient = grad(lambda f: loss(f, **rest, **arguments))
    stacked = torch.stack([raw, 2 * raw])
    torch.testing.assert_close(vmap(gradient)(stacked), torch.stack([gradient(f) for f in stacked]))
    huge = (1e4 * raw.sign()).requires_grad_(True)
    value = loss(**{**case, "logits": huge, "mixup_logits": 1e4 * case["mixup_logits"]}, **arguments)
    assert value.isfinite() and torch.autograd.grad(value, huge)[0].isfinite().all()


GOOD = batch()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"logits": GOOD["logits"][0]}, r"logits must have shape \(N, C\)"),
        ({"target": torch.full((6,), 9)}, "target has label 9, but logits have 4 classes"),
        ({"target": torch.full((6,), -100)}, "target has label -100"),
        ({"mixup_logits": GOOD["mixup_logits"][:5]}, r"mixup_logits must have shape \(6, 4\)"),
        ({"mixup_logits": GOOD["mixup_logits"].long()}, "mixup_logits must be floating point"),
        ({"mixup_logits": GOOD["mixup_logits"] * float("nan")}, r"mixup_logits\[0, 0\] is nan"),
        ({"mixup_target": GOOD["target"]}, r"mixup_target must be floating point of shape \(6, 4\)"),
        ({"mixup_target": GOOD["mixup_target"] * 2}, r"mixup_target\[0\] is not a probability vector"),
        ({"margin": -1.0}, "margin must lie in"),
        ({"weight": float("inf")}, "weight must lie in"),
        ({"space": "softmax"}, "space must be 'logit' or 'probability', but is 'softmax'"),
        ({"mask": None}, "mask must be 'pair' or 'code', but is None"),
        ({"reduction": "average"}, "reduction must be"),
    ],
)
def test_bad_input_of_mrl(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        rankmixup_mrl(**{**GOOD, **change})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"lam": [0.5]}, r"mixup_logits must have shape \(6, 4\)"),
        ({"lam": [0.5, 1.5, 0.1]}, r"lam\[1\] is 1.5, outside \[0, 1\]"),
        ({"lam": 0.5}, r"lam must have shape \(N,\)"),
        ({"weight": -0.1}, "weight must lie in"),
    ],
)
def test_bad_input_of_mndcg(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        rankmixup_mndcg(**{**batch(LAM), "lam": LAM, **change})


def test_not_tensors() -> None:
    with pytest.raises(TypeError, match=r"mixup_target must be a torch\.Tensor, but is list"):
        rankmixup_mrl(**{**GOOD, "mixup_target": [[1.0]]})


def test_violation_rate_of_pairs() -> None:
    """Three images, one mixture each: more confident, as confident, less confident."""
    assert rank_violation_rate([0.5, 0.7, 0.9], [0.6, 0.7, 0.8], 0.3) == pytest.approx(2 / 3)
    # A mixture of equals asks for nothing.
    assert rank_violation_rate([0.5, 0.7, 0.9], [0.6, 0.7, 0.8], [[1.0, 0.3, 0.3]]) == pytest.approx(1 / 2)
    assert math.isnan(rank_violation_rate([0.5], [0.9], 1.0))


def test_violation_rate_of_mixtures() -> None:
    """0.9 is less mixed than 0.4; 0.4 and 0.6 are equally mixed, so of two mixtures they make no pair."""
    assert rank_violation_rate([1.0], [[0.5], [0.6]], [0.9, 0.4]) == pytest.approx(1 / 3)
    assert rank_violation_rate([1.0], [[0.5], [0.6]], [0.6, 0.4]) == 0.0
    assert rank_violation_rate([0.1], [[0.6], [0.5], [0.4]], [0.5, 0.75, 1.0]) == pytest.approx(1.0)


def test_violation_rate_of_noise_is_half() -> None:
    generator = torch.Generator().manual_seed(0)
    conf, mixed = torch.rand(5000, generator=generator), torch.rand(3, 5000, generator=generator)
    assert rank_violation_rate(conf, mixed, LAM) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([1.5], [0.5], 0.5), r"conf\[0\] is 1.5, outside"),
        (([0.5], [-0.5], 0.5), r"mix_conf\[0\] is -0.5, outside"),
        (([0.5, 0.5], [0.5], 0.5), r"mix_conf must have shape \(2,\) or \(J, 2\)"),
        (([0.5], [0.5], 1.5), r"lam\[0\] is 1.5, outside"),
        (([0.5], [0.5], [0.5, 0.5]), "lam must be a number or have shape"),
    ],
)
def test_bad_input_of_violation_rate(arguments: tuple, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        rank_violation_rate(*arguments)
