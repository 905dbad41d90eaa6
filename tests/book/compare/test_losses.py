"""The losses a user names: read without executing anything, refused by name."""

from __future__ import annotations

import pytest

from lossbook import losses
from lossbook.book.compare.losses import check_losses, parse_losses, usable


def test_losses_are_read_with_their_choices() -> None:
    first, second, third = parse_losses(" cross_entropy, focal(gamma=[1, 2.5]), z_loss(a=[1, 2], b=[0, 1]) ")
    assert (first.label, first.loss, first.settings) == ("cross_entropy", losses.cross_entropy, ({},))
    assert (second.label, second.settings) == ("focal(gamma=[1, 2.5])", ({"gamma": 1}, {"gamma": 2.5}))
    assert third.settings == ({"a": 1, "b": 0}, {"a": 1, "b": 1}, {"a": 2, "b": 0}, {"a": 2, "b": 1})
    assert parse_losses("ldr_kl(normalize='l1'),")[0].settings == ({"normalize": "l1"},)


def test_negative_numbers_and_features() -> None:
    assert parse_losses("z_loss(b=-0.5)")[0].settings == ({"b": -0.5},)
    assert parse_losses("bias_loss")[0].reads_features
    assert not parse_losses("focal")[0].reads_features


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "losses is empty"),
        (" , ", "losses cannot be read"),
        ("crossentropy", "there is no loss 'crossentropy'; did you mean cross_entropy"),
        ("calibration", "there is no loss 'calibration'"),
        ("supcon", "supcon is no loss of .logits, target. and nothing else; those are aldr_kl"),
        ("soft_confusion", "soft_confusion is no loss of"),
        ("hinge", "hinge is no loss of"),
        ("focal(gama=2)", "focal has no parameter 'gama' to set; it has gamma"),
        ("focal(reduction='sum')", "focal has no parameter 'reduction' to set"),
        ("focal(gamma=-1)", r"focal\(gamma=-1\): gamma must lie in"),
        ("focal(gamma='x')", "gamma must be a number"),
        ("focal(gamma=[])", "gamma has an empty list"),
        ("focal(gamma=[1, 1])", "gamma lists 1 twice"),
        ("focal(gamma={1: 2})", "gamma must be a number or a word"),
        ("focal, focal", "losses names focal twice"),
        ("focal(gamma=2), focal(gamma = 2)", "losses names .* twice"),
        ("focal(2)", "write name or name.parameter=value."),
        ("focal(**{'gamma': 2})", "write name or name.parameter=value."),
        ("losses.focal", "write name or name.parameter=value."),
        ("focal(gamma=2", "losses cannot be read"),
        ("focal], [mae", "losses cannot be read"),
        ("focal\0", "losses cannot be read"),
        ("(" * 5000, "losses cannot be read"),
        ("focal, " * 3000, "up to 10,000 are read"),
    ],
)
def test_what_cannot_be_compared_is_named(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_losses(text)


@pytest.mark.parametrize(
    "text",
    ["focal(gamma=__import__('os').getpid())", "focal(gamma=open)", "focal(gamma=2 if 1 else 3)", "(lambda: focal)()"],
)
def test_nothing_is_executed(text: str) -> None:
    with pytest.raises(ValueError, match="is no plain value|write name or"):
        parse_losses(text)


def test_every_usable_loss_is_parsed_and_can_be_called() -> None:
    known = usable()
    assert {"cross_entropy", "focal", "comp_sum", "brier", "bias_loss", "z_loss"} <= set(known)
    assert len(parse_losses(", ".join(known))) == len(known)


def test_the_number_of_classes_is_tried() -> None:
    with pytest.raises(ValueError, match="z_loss: the Z-loss needs at least 3 classes"):
        check_losses(parse_losses("focal, z_loss"), 2)
    check_losses(parse_losses("focal, z_loss"), 3)
