"""The zoo: what is in it, that each network is the one `fit` would train, bad input."""

from __future__ import annotations

import pytest
import torch

from lossbook.losses import cross_entropy
from lossbook.models import MLP
from lossbook.train import fit, model_zoo


def test_holds_every_combination_in_order(blobs):
    zoo = model_zoo(blobs, widths=(3, 5), depths=(1, 2), epochs=(1, 2), weight_decays=(0.0, 0.1), seeds=(4, 7))
    assert len(zoo) == len(zoo.table) == 32
    settings = ["width", "depth", "epochs", "weight_decay", "seed"]
    assert list(zoo.table.columns[:5]) == settings
    rows = list(zoo.table[settings].itertuples(index=False, name=None))
    assert rows == sorted(set(rows))
    logits = zoo.logits(blobs.test[0])
    assert logits.shape == (32, 50, 3)
    right = (zoo.logits(blobs.val[0]).argmax(dim=2) == blobs.val[1]).double().mean(dim=1)
    torch.testing.assert_close(right, torch.tensor(zoo.table["val_accuracy"].to_numpy()))


@pytest.mark.parametrize("row", [0, 5])
def test_a_network_is_what_fit_trains(blobs, row):
    zoo = model_zoo(blobs, widths=(4,), depths=(1, 2), epochs=(3,), weight_decays=(0.0, 0.05, 0.5), lr=0.01)
    settings = zoo.table.iloc[row]
    torch.manual_seed(0)
    model = MLP(6, (4,) * int(settings.depth), 3)
    fit(model, blobs, cross_entropy, epochs=3, weight_decay=float(settings.weight_decay), lr=0.01, seed=0)
    with torch.no_grad():
        torch.testing.assert_close(zoo.logits(blobs.test[0])[row], model(blobs.test[0]), atol=1e-4, rtol=1e-4)


def test_classes_that_training_lacks(blobs):
    zoo = model_zoo(blobs, widths=(2,), depths=(1,), epochs=(1,), num_classes=5)
    assert zoo.logits(blobs.test[0]).shape == (2, 50, 5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"widths": ()}, r"widths must be a list of one or more values, but is \(\)"),
        ({"epochs": 3}, "epochs must be a list of one or more values, but is 3"),
        ({"seeds": "12"}, "seeds must be a list"),
        ({"depths": (0,)}, "hidden must list the width of one or more layers"),
        ({"num_classes": 2}, "train.y has label 2, but the model has 2 logits"),
        ({"epochs": (0,)}, "epochs must be a whole number of at least 1"),
    ],
)
def test_refuses_bad_input(blobs, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        model_zoo(blobs, **{"widths": (2,), "depths": (1,), "epochs": (1,), **arguments})
