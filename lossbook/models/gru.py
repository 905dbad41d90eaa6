"""A recurrent classifier of short sequences of bins."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lossbook import checks


class GRUClassifier(nn.Module):
    """A gated recurrent unit reads a sequence; a linear `head` reads its last state.

        r = σ(W_r x_t + U_r h + b_r)              what to keep of the state for the candidate
        z = σ(W_z x_t + U_z h + b_z)              how much of the state to replace
        h̃ = tanh(W_h x_t + U_h (r ∘ h) + b_h)
        h ← (1 - z) ∘ h + z ∘ h̃                   from h = 0, for t = 1..T;  logits = W h + b

    `torch.nn.GRU` multiplies by r after the map, r ∘ (U_h h + b), and lets z weigh the old state; the first is another
    function, the second a matter of names. This one is written in plain operations, which `torch.func.vmap` takes.

    Args:
        n_bins: entries of one time step.
        hidden: entries of the state, which is the features.
        num_classes: number of logits, at least 2.

    Shapes: x (N, T, n_bins), such as `torch.nn.functional.one_hot(bins, n_bins).float()` of bins (N, T); T is free;
    `features(x)` (N, hidden), each in (-1, 1); logits (N, num_classes).

    Raises:
        ValueError: a size is not a positive integer, or x has another shape.

    Source: Cho et al. 2014 (arXiv 1406.1078), appendix A, with z and 1 - z exchanged; Agarap 2017 (arXiv 1709.03082).
    """

    def __init__(self, n_bins: int = 10, hidden: int = 32, num_classes: int = 2) -> None:
        super().__init__()
        self.n_bins, self.hidden = checks.whole("n_bins", n_bins, 1), checks.whole("hidden", hidden, 1)
        self.input = nn.Linear(self.n_bins, 3 * self.hidden)
        self.gates = nn.Linear(self.hidden, 2 * self.hidden, bias=False)
        self.candidate = nn.Linear(self.hidden, self.hidden, bias=False)
        self.head = nn.Linear(self.hidden, checks.whole("num_classes", num_classes, 2))

    def features(self, x: Tensor) -> Tensor:
        """The state after the last time step, (N, hidden)."""
        if x.dim() != 3 or x.shape[2] != self.n_bins or x.shape[1] == 0:
            raise ValueError(f"x must have shape (N, T, {self.n_bins}), but has shape {tuple(x.shape)}")
        h = x.new_zeros(len(x), self.hidden)
        for from_x in self.input(x).unbind(dim=1):
            to_gates, to_candidate = from_x.split([2 * self.hidden, self.hidden], dim=1)
            r, z = torch.sigmoid(to_gates + self.gates(h)).chunk(2, dim=1)
            h = h + z * (torch.tanh(to_candidate + self.candidate(r * h)) - h)
        return h

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (N, num_classes)."""
        return self.head(self.features(x))
