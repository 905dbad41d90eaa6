from __future__ import annotations

import pytest
import torch

from lossbook.losses.surrogate import l2_svm, svm_objective


def batch(n=8, c=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, c, generator=generator, dtype=torch.float64), torch.randint(c, (n,), generator=generator)


def test_l2_svm_by_hand():
    """Scores 0.5, 2, -3 with label 0: (1 - 0.5)² + (1 + 2)² + 0."""
    f = torch.tensor([[0.5, 2.0, -3.0]], requires_grad=True)
    loss = l2_svm(f, torch.tensor([0]))
    loss.backward()
    assert loss.item() == pytest.approx(9.25)
    assert f.grad.tolist() == [[-1.0, 6.0, 0.0]]


def test_l2_svm_squares_torchs_hinge():
    """torch has the hinge without its square, one score at a time."""
    f, y = batch()
    t = 2.0 * torch.nn.functional.one_hot(y, 4) - 1
    # For the label -1, hinge_embedding_loss(u, -1, margin=1) = max(0, 1 - u).
    peer = torch.nn.functional.hinge_embedding_loss(t * f, -torch.ones_like(f), margin=1.0, reduction="none")
    torch.testing.assert_close(l2_svm(f, y, reduction="none"), peer.square().sum(dim=1))


def test_l2_svm_leaves_satisfied_scores_alone():
    y = torch.tensor([0, 1, 2])
    f = (2.0 * torch.eye(3) - 1).mul(torch.tensor([[1.0], [3.0], [1e4]])).requires_grad_(True)
    loss = l2_svm(f, y, reduction="sum")
    loss.backward()
    assert loss.item() == 0
    assert not f.grad.any()


def test_l2_svm_reads_the_level():
    f, y = batch()
    assert not torch.allclose(l2_svm(f + 1, y), l2_svm(f, y))


def test_svm_objective_trains_scikit_learns_machine():
    """Two classes with scores (-s, s): the objective is that of LinearSVC, at the same minimum."""
    from sklearn.svm import LinearSVC

    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 2
    x = torch.randn(60, 3, generator=generator, dtype=torch.float64) + y[:, None]
    peer = LinearSVC(loss="squared_hinge", C=0.5, fit_intercept=False, tol=1e-10, max_iter=100_000).fit(x, y)
    # One-vs-rest, the two machines are each other's mirror image.
    best = torch.from_numpy(peer.coef_[0])
    weight = torch.stack([-best, best]).requires_grad_(True)
    objective = svm_objective(weight, x @ weight.T, y, c=0.5)
    (slope,) = torch.autograd.grad(objective, weight)
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-4, rtol=0)


def test_svm_objective_without_data_is_weight_decay():
    f, y = batch()
    weight = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    objective = svm_objective(weight, f, y, c=0.0)
    (slope,) = torch.autograd.grad(objective, weight)
    torch.testing.assert_close(slope, weight)


def test_svm_objective_gradient():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 6, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])
    weight = torch.randn(4, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: svm_objective(w, x @ w.T, y), weight)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"c": -0.1}, ValueError, "c must lie in"),
        ({"c": float("nan")}, ValueError, "c must lie in"),
        ({"weight": torch.zeros(3, 6)}, ValueError, "weight must be floating point with one row for each of the 4"),
        ({"weight": torch.zeros(4)}, ValueError, "weight must be floating point with one row"),
        ({"weight": torch.zeros(4, 6).long()}, ValueError, "weight must be floating point"),
        ({"weight": torch.full((4, 6), float("nan"))}, ValueError, r"weight\[0, 0\] is nan"),
        ({"weight": [[1.0]]}, TypeError, "weight must be a torch.Tensor, but is list"),
        ({"target": torch.full((8,), 4)}, ValueError, "target has label 4, but logits have 4 classes"),
        ({"logits": torch.zeros(8)}, ValueError, "logits must have shape"),
    ],
)
def test_svm_objective_refuses_bad_input_by_name(change, error, message):
    f, y = batch()
    arguments = {"weight": torch.zeros(4, 6), "logits": f, "target": y, "c": 0.5, **change}
    c = arguments.pop("c")
    with pytest.raises(error, match=message):
        svm_objective(**arguments, c=c)
