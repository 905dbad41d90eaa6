"""SelfTargets: first epoch, memory, shuffled rows, what is kept and what is not, PS-KD through `fit`, bad input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossbook.losses import cross_entropy, pskd
from lossbook.train import SelfTargets, fit


def test_the_label_until_there_is_a_past() -> None:
    store = SelfTargets(5, 3)
    index, y = torch.tensor([4, 0]), torch.tensor([2, 1])
    assert torch.equal(store.targets(index, y, 0.7), F.one_hot(y, 3).float())
    store.update(torch.tensor([0]), torch.tensor([[0.2, 0.5, 0.3]]))
    want = torch.tensor([[0, 0, 1.0], [0.14, 0.65, 0.21]])
    torch.testing.assert_close(store.targets(index, y, 0.7), want)
    torch.testing.assert_close(store.targets(index, y, 1.0)[1], torch.tensor([0.2, 0.5, 0.3]))
    assert torch.equal(store.targets(index, y, 0.0), F.one_hot(y, 3).float())


def test_rows_keep_their_own_past_under_shuffling() -> None:
    generator = torch.Generator().manual_seed(0)
    store, truth = SelfTargets(50, 4), torch.rand(50, 4, generator=generator).softmax(1)
    y = torch.randint(4, (50,), generator=generator)
    for index in torch.randperm(50, generator=generator).split(7):
        store.update(index, truth[index])
    for index in torch.randperm(50, generator=generator).split(9):
        torch.testing.assert_close(store.targets(index, y[index], 1.0), truth[index])


def test_nothing_is_kept_on_a_graph_and_nothing_handed_out_is_the_store() -> None:
    store = SelfTargets(3, 2)
    logits = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    index, y = torch.arange(3), torch.zeros(3, dtype=torch.long)
    store.update(index, logits.softmax(1))
    assert not store.probs.requires_grad
    before = store.probs.clone()
    store.targets(index, y, 1.0).zero_()
    assert torch.equal(store.probs, before) and before.sum() > 0


def test_the_state_dict_holds_the_past() -> None:
    store, other = SelfTargets(3, 2), SelfTargets(3, 2)
    store.update(torch.tensor([1]), torch.tensor([[0.3, 0.7]]))
    other.load_state_dict(store.state_dict())
    y = torch.zeros(3, dtype=torch.long)
    assert torch.equal(other.targets(torch.arange(3), y, 0.5), store.targets(torch.arange(3), y, 0.5))
    assert not list(store.parameters())
    assert repr(store) == "SelfTargets(n=3, num_classes=2)"


class Refined(nn.Module):
    """PS-KD as a loss of `fit`, with one alpha."""

    def __init__(self, n: int, num_classes: int, alpha: float) -> None:
        super().__init__()
        self.store, self.alpha = SelfTargets(n, num_classes), alpha

    def forward(self, logits: Tensor, y: Tensor, index: Tensor | None = None) -> Tensor:
        if index is None or not self.training:
            return cross_entropy(logits, y)
        past = self.store.targets(index, y, 1.0)
        self.store.update(index, logits.softmax(1))
        return pskd(logits, y, past, alpha=self.alpha)


def test_in_fit_the_second_epoch_learns_from_the_first(tmp_path) -> None:
    """One full batch an epoch: the first step is cross-entropy's, the second PS-KD's with the first prediction."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 3, generator=generator), torch.randint(3, (20,), generator=generator)

    class Data:
        train = val = (x, y)

    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    loss = Refined(20, 3, alpha=0.6)
    fit(model, Data, loss, epochs=2, batch_size=None, lr=0.5, optimizer="sgd", momentum=0.0, device="cpu")
    by_hand = nn.Linear(3, 3)
    by_hand.load_state_dict(start)
    past = F.one_hot(y, 3).float()
    for _ in range(2):
        logits = by_hand(x)
        value = pskd(logits, y, past, alpha=0.6)
        past = logits.detach().softmax(1)
        for p, g in zip(by_hand.parameters(), torch.autograd.grad(value, list(by_hand.parameters())), strict=True):
            p.data -= 0.5 * g
    torch.testing.assert_close(model.weight, by_hand.weight)
    torch.testing.assert_close(loss.store.probs, past)


INDEX, Y, PROBS = torch.tensor([0, 2]), torch.tensor([1, 0]), torch.tensor([[0.5, 0.5], [0.1, 0.9]])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"index": torch.tensor([0, 3])}, r"index must lie in \[0, 3\), but holds 0 to 3"),
        ({"index": torch.tensor([-1, 2])}, r"index must lie in \[0, 3\), but holds -1 to 2"),
        ({"index": torch.tensor(1)}, r"index must be integers of shape \(B,\)"),
        ({"index": INDEX.double()}, r"index must be integers of shape \(B,\), but is torch.float64"),
        ({"index": INDEX > 0}, "but is torch.bool"),
        ({"y": torch.tensor([1, 2])}, r"y must lie in \[0, 2\), but holds 1 to 2"),
        ({"y": torch.tensor([1])}, r"y must be integers of shape \(2,\)"),
        ({"alpha": 1.5}, r"alpha must lie in \[0, 1\], but is 1.5"),
    ],
)
def test_bad_targets(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SelfTargets(3, 2).targets(**{"index": INDEX, "y": Y, "alpha": 0.5, **change})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"index": torch.tensor([0, 5])}, r"index must lie in \[0, 3\)"),
        ({"probs": PROBS[:1]}, r"probs must be floating point of shape \(2, 2\)"),
        ({"probs": 5 * PROBS}, r"probs\[0\] is not a probability vector"),
    ],
)
def test_bad_update(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SelfTargets(3, 2).update(**{"index": INDEX, "probs": PROBS, **change})


def test_bad_sizes_and_types() -> None:
    with pytest.raises(ValueError, match="n must be a whole number of at least 1"):
        SelfTargets(0, 2)
    with pytest.raises(ValueError, match="num_classes must be a whole number of at least 2"):
        SelfTargets(5, 1)
    with pytest.raises(TypeError, match=r"index must be a torch\.Tensor, but is list"):
        SelfTargets(3, 2).update([0], PROBS)
