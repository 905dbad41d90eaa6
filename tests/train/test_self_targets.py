"""SelfTargets: first epoch, memory, shuffled rows, what is kept and what is not, bad input; PS-KD in `fit`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lossbook.losses import cross_entropy, pskd
from lossbook.train import SelfDistillation, SelfTargets, fit


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


def test_alpha_grows_by_epochs_not_by_steps() -> None:
    loss = SelfDistillation(6, 3, epochs=4, alpha_T=0.8)
    seen = []
    for _ in range(5):
        for index in torch.arange(6).split(4):  # Two steps an epoch, the second one shorter.
            seen.append(loss.alpha.item())
            loss(torch.zeros(len(index), 3), torch.zeros(len(index), dtype=torch.long), index)
    assert seen == pytest.approx([0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8, 0.8, 0.8])
    assert repr(loss) == "SelfDistillation(\n  epochs=4, alpha_T=0.8\n  (store): SelfTargets(n=6, num_classes=3)\n)"


def test_evaluation_is_cross_entropy_and_leaves_no_trace() -> None:
    loss = SelfDistillation(4, 3, epochs=2)
    logits, y, index = torch.randn(4, 3), torch.arange(4) % 3, torch.arange(4)
    loss(logits, y, index)
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    torch.testing.assert_close(loss(logits, y), cross_entropy(logits, y))
    torch.testing.assert_close(loss.eval()(logits, y, index), cross_entropy(logits, y))
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


def test_in_fit_the_second_epoch_learns_from_the_first() -> None:
    """One full batch an epoch: the first step is cross-entropy's, the second PS-KD's with the first prediction."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 3, generator=generator), torch.randint(3, (20,), generator=generator)

    class Data:
        train = val = (x, y)

    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    loss = SelfDistillation(20, 3, epochs=3, alpha_T=0.9)
    fit(model, Data, loss, epochs=3, batch_size=None, lr=0.5, optimizer="sgd", momentum=0.0, device="cpu")
    by_hand = nn.Linear(3, 3)
    by_hand.load_state_dict(start)
    past = F.one_hot(y, 3).float()
    for alpha in (0.3, 0.6, 0.9):
        logits = by_hand(x)
        value = pskd(logits, y, past, alpha=alpha)
        past = logits.detach().softmax(1)
        for p, g in zip(by_hand.parameters(), torch.autograd.grad(value, list(by_hand.parameters())), strict=True):
            p.data -= 0.5 * g
    torch.testing.assert_close(model.weight, by_hand.weight)
    torch.testing.assert_close(loss.store.probs, past)


def test_a_stopped_training_goes_on_with_its_past(tmp_path) -> None:
    generator = torch.Generator().manual_seed(0)

    class Data:
        train = val = (torch.randn(20, 3, generator=generator), torch.randint(3, (20,), generator=generator))

    class Stop(Exception):
        pass

    def stop(epoch: int, _: nn.Module) -> None:
        if epoch == 3:
            raise Stop

    settings = {"epochs": 4, "batch_size": 6, "lr": 0.05, "device": "cpu"}

    def fresh() -> tuple[nn.Module, SelfDistillation]:
        torch.manual_seed(0)
        return nn.Linear(3, 3), SelfDistillation(20, 3, epochs=4)

    whole, other = fresh()
    fit(whole, Data, other, **settings)
    with pytest.raises(Stop):
        fit(*(lambda m, loss: (m, Data, loss))(*fresh()), **settings, checkpoint=tmp_path / "c", callback=stop)
    again, loss = fresh()
    fit(again, Data, loss, **settings, checkpoint=tmp_path / "c")
    assert torch.equal(again.weight, whole.weight) and loss.visits == 80


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
    with pytest.raises(ValueError, match="epochs must be a whole number of at least 1"):
        SelfDistillation(3, 2, epochs=0)
    with pytest.raises(ValueError, match=r"alpha_T must lie in \[0, 1\]"):
        SelfDistillation(3, 2, epochs=1, alpha_T=1.2)
