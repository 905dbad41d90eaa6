"""The multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from lossbook import checks


class MLP(nn.Module):
    """Linear layers with ReLU between them; the last hidden layer is the features, a linear `head` reads them.

    h_0 = flatten(x),  h_j = relu(W_j h_{j-1} + b_j) for j = 1..L,  logits = W h_L + b.

    Args:
        in_features: entries of one example after flattening, e.g. 64 for an 8x8 image.
        hidden: widths of the L >= 1 hidden layers; the last one is the dimension of the features.
        num_classes: number of logits, at least 2.
        linear_features: leave out the ReLU of the last hidden layer, so that features may be negative. ReLU features
            all lie in one orthant, where class means cannot form a simplex centred at 0.

    Shapes: x (N, ...) with in_features entries an example; `features(x)` (N, hidden[-1]); logits (N, num_classes).

    Raises:
        ValueError: a size is not a positive integer, or x has another number of entries.
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int] = (64,),
        num_classes: int = 10,
        *,
        linear_features: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(hidden, int) or not isinstance(hidden, Sequence) or not hidden:
            raise ValueError(f"hidden must list the width of one or more layers, e.g. (64,), but is {hidden!r}")
        self.in_features = checks.whole("in_features", in_features, 1)
        widths = [self.in_features, *(checks.whole(f"hidden[{i}]", width, 1) for i, width in enumerate(hidden))]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.body = nn.Sequential(*(layers[:-1] if linear_features else layers))
        self.head = nn.Linear(widths[-1], checks.whole("num_classes", num_classes, 2))

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer, (N, hidden[-1])."""
        x = x.flatten(1)
        if x.shape[1] != self.in_features:
            raise ValueError(f"x must have {self.in_features} entries an example, but has {x.shape[1]}")
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (N, num_classes)."""
        return self.head(self.features(x))
