"""Bought labels: the fits against scikit-learn, what a budget buys, limits, bad input."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossbook.train import budget, budget_sweep


def half_spaces(n: int = 300, dim: int = 4) -> SimpleNamespace:
    """Noisy half spaces with 300 / 200 rows."""
    generator = torch.Generator().manual_seed(5)

    def split(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(n, dim, generator=generator)
        return x, (2 * x[:, 0] + torch.randn(n, generator=generator) > 0).long()

    return SimpleNamespace(train=split(n), test=split(200))


def sweep(data: SimpleNamespace, **arguments):
    return budget_sweep(data, **{"budgets": [20], "costs": [0.1], "accuracies": [0.8], "seeds": [3], **arguments})


def by_hand(data: SimpleNamespace, n_weak: int, n_right: int, accuracy: float, seed: int, ridge: float, pull: float):
    """The accuracy of the two fits, by a general minimiser, from rows drawn as the docstring says."""
    from scipy.optimize import minimize

    generator = torch.Generator().manual_seed(seed)
    place, luck = torch.randperm(300, generator=generator), torch.rand(300, generator=generator)
    x = np.hstack([data.train[0].double().numpy(), np.ones((300, 1))])
    y = data.train[1].numpy()

    def fit(rows, labels, start, strength):
        sign = 2 * labels[rows] - 1

        def loss(theta):
            residual = theta - start
            return np.logaddexp(0, -sign * (x[rows] @ theta)).sum() + strength / 2 * residual @ residual

        return minimize(loss, start, method="BFGS", options={"gtol": 1e-7}).x

    theta = np.zeros(x.shape[1])
    if n_weak:
        theta = fit(place.numpy() < n_weak, np.where(luck.numpy() < accuracy, y, 1 - y), theta, ridge)
    if n_right:
        theta = fit(place.numpy() >= 300 - n_right, y, theta, pull if n_weak else ridge)
    scores = np.hstack([data.test[0].double().numpy(), np.ones((200, 1))]) @ theta
    return np.mean((scores > 0) == data.test[1].numpy())


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_is_two_regressions(share):
    data = half_spaces()
    table = sweep(data, weak_shares=[share], ridge=0.7, pull=4.0)
    (row,) = table.itertuples()
    assert (row.n_weak, row.n_right) == (round(200 * share), round(20 * (1 - share)))
    expected = by_hand(data, row.n_weak, row.n_right, 0.8, 3, ridge=0.7, pull=4.0)
    assert row.test_accuracy == pytest.approx(expected, abs=0.0051)  # one row of the 200 may lie on the boundary


def test_fit_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression

    x = torch.randn(60, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = (x[:, 0] + 0.3 * x[:, 1] > 0).double()
    weight = torch.stack([torch.ones(60), torch.arange(60) % 2]).double()
    strength = torch.tensor([[0.5], [0.02]], dtype=torch.float64)
    theta = budget._fit(x, y.expand(2, -1), weight, torch.zeros(2, 3, dtype=torch.float64), strength)
    for i, ridge in enumerate((0.5, 0.02)):
        peer = LogisticRegression(C=1 / ridge, fit_intercept=False, tol=1e-10, max_iter=1000)
        peer.fit(x.numpy(), y.numpy(), sample_weight=weight[i].numpy())
        np.testing.assert_allclose(theta[i], peer.coef_[0], rtol=1e-4)


def test_a_fit_without_rows_stays_where_it_starts():
    start = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    x = torch.ones(4, 2, dtype=torch.float64)
    none = torch.zeros(1, 4, dtype=torch.float64)
    assert torch.equal(budget._fit(x, none, none, start, torch.ones(1, 1, dtype=torch.float64)), start)


def test_limits():
    data = half_spaces()
    table = sweep(data, accuracies=[0.0, 0.5, 1.0], costs=[1.0], budgets=[100], weak_shares=[0.0, 1.0], seeds=range(4))
    mean = table.groupby(["accuracy", "weak_share"]).test_accuracy.mean()
    # Weak labels that are always right are right ones; always wrong, they teach the opposite.
    assert mean[1.0, 1.0] == pytest.approx(mean[1.0, 0.0], abs=0.03)
    assert mean[0.0, 1.0] == pytest.approx(1 - mean[1.0, 1.0], abs=1e-12)
    assert abs(mean[0.5, 1.0] - 0.5) < 0.25
    # An infinite pull leaves what the weak labels taught.
    held = sweep(data, weak_shares=[0.5, 1.0], budgets=[20, 10], pull=1e9).set_index(["budget", "weak_share"])
    assert held.test_accuracy[20, 0.5] == held.test_accuracy[10, 1.0]


@given(budget=st.integers(1, 25), tenths=st.integers(1, 10))
def test_counts_do_not_lose_a_label_to_rounding(budget, tenths):
    table = sweep(half_spaces(), budgets=[budget], costs=[tenths / 10], weak_shares=[1.0])
    assert table.n_weak[0] == budget * 10 // tenths


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"budgets": [40]},
            "a budget of 40 with the share 1 for weak labels of cost 0.1 buys 400 labels, but",
        ),
        ({"budgets": [0.5]}, r"budgets must lie in \[1, inf"),
        ({"costs": [0.0]}, "costs must lie in"),
        ({"accuracies": [1.2]}, "accuracies must lie in"),
        ({"weak_shares": [-0.1]}, "weak_shares must lie in"),
        ({"ridge": 0.0}, "ridge must lie in"),
        ({"pull": -1.0}, "pull must lie in"),
    ],
)
def test_refuses_bad_input(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        sweep(half_spaces(), **arguments)


def test_refuses_other_labels_and_widths():
    data = half_spaces()
    with pytest.raises(ValueError, match="train.y has label 2"):
        sweep(SimpleNamespace(train=(data.train[0], data.train[1] + 1), test=data.test))
    with pytest.raises(ValueError, match="train.x has 4 features, but test.x has 3"):
        sweep(SimpleNamespace(train=data.train, test=(data.test[0][:, :3], data.test[1])))
