from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from lossbook.models import GRUClassifier


def sequences(n=6, length=7, bins=5):
    generator = torch.Generator().manual_seed(0)
    return nn.functional.one_hot(torch.randint(bins, (n, length), generator=generator), bins).float()


def test_the_head_reads_the_features():
    model, x = GRUClassifier(5, 8, 3), sequences()
    features = model.features(x)
    assert features.shape == (6, 8)
    assert features.abs().max() < 1
    torch.testing.assert_close(model(x), features @ model.head.weight.T + model.head.bias)


def test_it_is_torchs_unit_where_the_reset_gate_commutes():
    """With a diagonal U_h, r ∘ (U_h h) = U_h (r ∘ h); torch's z is 1 - z, so its weights change sign."""
    torch.manual_seed(0)
    model, x, h = GRUClassifier(5, 8, 2), sequences(), 8
    peer = nn.GRU(5, h, batch_first=True)
    sign = torch.cat([torch.ones(h), -torch.ones(h), torch.ones(h)])
    with torch.no_grad():
        model.candidate.weight.copy_(model.candidate.weight.diagonal().diag())
        recurrent = torch.cat([model.gates.weight, model.candidate.weight])
        peer.weight_ih_l0.copy_(sign[:, None] * model.input.weight)
        peer.weight_hh_l0.copy_(sign[:, None] * recurrent)
        peer.bias_ih_l0.copy_(sign * model.input.bias)
        peer.bias_hh_l0.zero_()
        torch.testing.assert_close(model.features(x), peer(x)[1][0])
        peer.weight_hh_l0[2 * h :] = torch.randn(h, h)
        model.candidate.weight.copy_(peer.weight_hh_l0[2 * h :])
        assert not torch.allclose(model.features(x), peer(x)[1][0], atol=1e-3), "they differ for any other U_h"


def test_the_order_of_the_steps_matters_and_the_order_of_the_rows_does_not():
    model, x = GRUClassifier(5, 8), sequences()
    order = torch.tensor([3, 1, 0, 2, 5, 4])
    torch.testing.assert_close(model(x[order]), model(x)[order])
    assert not torch.allclose(model(x.flip(1)), model(x), atol=1e-4)


def test_stacked_networks_agree_with_single_ones():
    models, x = [GRUClassifier(5, 8, 3) for _ in range(3)], sequences()
    state, _ = stack_module_state(models)
    together = vmap(lambda weights: functional_call(models[0], weights, (x,)))(state)
    torch.testing.assert_close(together, torch.stack([model(x) for model in models]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GRUClassifier(0), "n_bins must be a whole number of at least 1, but is 0"),
        (lambda: GRUClassifier(5, 0), "hidden must be a whole number of at least 1, but is 0"),
        (lambda: GRUClassifier(5, 8, 1), "num_classes must be a whole number of at least 2, but is 1"),
        (
            lambda: GRUClassifier(5, 8)(torch.zeros(3, 7, 4)),
            r"x must have shape \(N, T, 5\), but has shape \(3, 7, 4\)",
        ),
        (lambda: GRUClassifier(5, 8)(torch.zeros(3, 5)), r"x must have shape \(N, T, 5\)"),
        (lambda: GRUClassifier(5, 8)(torch.zeros(3, 0, 5)), r"x must have shape \(N, T, 5\)"),
    ],
)
def test_bad_sizes_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
