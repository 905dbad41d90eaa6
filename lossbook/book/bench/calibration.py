"""Calibration errors and scores of many predictions against the libraries that compute them too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lossbook.book.bench.measure import Measurement, Work, compare

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Rows at most, by the number of classes: a million times a thousand probabilities are 4 GB.
SIZES = {10: 1_000_000, 100: 1_000_000, 1_000: 1_000_000}
# netcal makes copies of all probabilities: of 4 GB they would not fit an ordinary machine.
NETCAL_ENTRIES = 100_000_000
# The probabilities and what the peers make of them, in units of the probabilities.
_NEEDED = 2.5


@dataclass(frozen=True)
class Case:
    """A number that ours and a peer compute from the same predictions."""

    name: str
    peer_name: str
    ours: Callable[[], Any]
    peer: Callable[[], Any]
    rows: int
    at_least: float | None = None


def calibration_error(repeats: int, device: torch.device) -> Iterator[Measurement]:
    """ECE of a million predictions over 10, 100 and 1,000 classes; of 10 also classwise ECE, NLL and Brier score.

    Fewer predictions where memory does not hold them; the row's name says how many. Peers: torchmetrics on the same
    device (for the classwise error its binary one, class by class); netcal and scikit-learn on the CPU, netcal with
    the first 100 million probabilities. Promised: the ECE at least 1.5 times as fast as torchmetrics' from 100 classes
    on and as netcal's, and with 10 classes no slower than netcal's. There torchmetrics' is about as fast.
    """
    for num_classes, rows in SIZES.items():
        probs, target = predictions(min(rows, _affordable(num_classes, device)), num_classes, device)
        for case in cases(probs, target):
            work = Work(bytes=case.rows * (num_classes * probs.element_size() + target.element_size()))
            yield compare(
                case.name,
                case.peer_name,
                case.ours,
                case.peer,
                repeats,
                device=device,
                at_least=case.at_least,
                memory=True,
                work=work,
            )
            del case  # it holds the probabilities
        del probs, target


def predictions(rows: int, num_classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Probabilities and labels. A tenth of the probabilities is drawn and repeated: they are read no faster for that.

    Made in place, so that no second copy is ever held.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    probs = torch.empty(rows, num_classes, device=device)
    first, *others = probs.split(max(1, -(-rows // 10)))
    first.copy_(torch.randn(first.shape, generator=generator).mul_(2).softmax(dim=1))
    for part in others:
        part.copy_(first[: len(part)])
    return probs, torch.randint(num_classes, (rows,), generator=generator).to(device)


def cases(probs: Tensor, target: Tensor) -> Iterator[Case]:
    """What is compared on these predictions, the peers on the CPU with copies where these are on a GPU."""
    from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

    from lossbook.metrics import (
        brier_score,
        classwise_calibration_error,
        expected_calibration_error,
        negative_log_likelihood,
    )

    n, k = probs.shape
    size = f"of {n:,} × {k:,}"
    yield Case(
        f"ECE {size}",
        "torchmetrics",
        lambda: expected_calibration_error(probs, target, n_bins=15),
        lambda: multiclass_calibration_error(probs, target, num_classes=k, n_bins=15),
        n,
        1.5 if k >= 100 else None,
    )
    on_cpu = ", on the CPU" if probs.is_cuda else ""
    if find_spec("netcal"):
        from netcal.metrics import ECE

        m = min(n, NETCAL_ENTRIES // k)
        few, labels = probs[:m], target[:m]
        array, array_labels = few.cpu().numpy(), labels.cpu().numpy()
        yield Case(
            f"ECE of {m:,} × {k:,}",
            f"netcal{on_cpu}",
            lambda: expected_calibration_error(few, labels, n_bins=15),
            lambda: ECE(15).measure(array, array_labels),
            m,
            1.5 if k >= 100 else 1.0,
        )
    if k > 10:
        return
    from sklearn.metrics import brier_score_loss, log_loss

    array, array_labels, classes = probs.cpu().numpy(), target.cpu().numpy(), list(range(k))
    yield Case(
        f"classwise ECE {size}",
        "torchmetrics, class by class",
        lambda: classwise_calibration_error(probs, target, n_bins=15),
        lambda: sum(float(binary_calibration_error(probs[:, c], target == c, n_bins=15)) for c in classes) / k,
        n,
    )
    yield Case(
        f"NLL {size}",
        f"scikit-learn{on_cpu}",
        lambda: negative_log_likelihood(probs, target),
        lambda: log_loss(array_labels, array, labels=classes),
        n,
    )
    yield Case(
        f"Brier score {size}",
        f"scikit-learn{on_cpu}",
        lambda: brier_score(probs, target),
        lambda: brier_score_loss(array_labels, array, labels=classes, scale_by_half=False),
        n,
    )


def _affordable(num_classes: int, device: torch.device) -> int:
    """How many rows of probabilities the free memory holds, with what the peers make of them."""
    import psutil
    import torch

    free = psutil.virtual_memory().available if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
    return int(free / (_NEEDED * 4 * num_classes))
