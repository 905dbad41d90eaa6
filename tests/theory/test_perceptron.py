from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lossbook.theory import perceptron_bound


def test_one_hard_point_by_hand():
    """(1, 0) and (-0.8, 0.6): the best direction halves their angle, whose cosine is -0.8; cos² = (1 - 0.8)/2."""
    Z = torch.tensor([[1.0, 0.0]] * 9 + [[-0.8, 0.6]], dtype=torch.float64)
    bound = perceptron_bound(Z)
    assert bound.radius == pytest.approx(1)
    assert bound.margin == pytest.approx(math.sqrt(0.1))
    assert bound.steps == pytest.approx(10)


@pytest.mark.parametrize("seed", range(3))
def test_the_margin_is_that_of_a_hard_margin_svm(seed):
    from sklearn.svm import SVC

    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(80, 5, generator=generator, dtype=torch.float64)
    Z = samples * torch.sign(samples[:, :1])
    # Mirroring the data makes the machine's bias 0.
    peer = SVC(kernel="linear", C=1e8, tol=1e-8).fit(torch.cat([Z, -Z]).numpy(), np.repeat([1, -1], 80))
    assert perceptron_bound(Z).margin == pytest.approx(1 / np.linalg.norm(peer.coef_), rel=1e-4)


def test_units_cancel():
    Z = torch.tensor([[1.0, 0.2], [0.3, 1.0], [2.0, 0.5]], dtype=torch.float64)
    small, large = perceptron_bound(Z), perceptron_bound(1e6 * Z)
    assert large.margin == pytest.approx(1e6 * small.margin)
    assert large.steps == pytest.approx(small.steps)


@pytest.mark.parametrize("rows", [[[1.0, 0.0], [-1.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]], [[0.0, 0.0]]])
def test_no_margin_no_bound(rows):
    bound = perceptron_bound(torch.tensor(rows))
    assert bound.margin == 0
    assert bound.steps == math.inf


@pytest.mark.parametrize(
    ("Z", "error", "message"),
    [
        (torch.ones(3), ValueError, r"Z must be floating point of shape \(n, d\)"),
        (torch.ones(0, 2), ValueError, r"Z must be floating point of shape \(n, d\)"),
        (torch.ones(3, 2).long(), ValueError, "Z must be floating point"),
        (torch.tensor([[float("inf")]]), ValueError, r"Z\[0, 0\] is inf"),
        (np.ones((3, 2)), TypeError, "Z must be a torch.Tensor"),
    ],
)
def test_bad_input_is_refused_by_name(Z, error, message):
    with pytest.raises(error, match=message):
        perceptron_bound(Z)
