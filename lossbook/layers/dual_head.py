"""Two heads on one backbone, for two losses that a single linear layer cannot serve."""

from __future__ import annotations

from torch import Tensor, nn

from lossbook import checks


class DualHead(nn.Module):
    """A main head for the labels and an auxiliary one for the teacher's logits, on the same features h = backbone(x).

        z = W h + b,    z' = g(h),    loss = CE(z, y) + alpha binary_kl_norm(z', t)

    The gradients of the two losses conflict in a linear head, not in the backbone: each gets a head of its own, both
    train the backbone, and the auxiliary head is thrown away after training. g is a linear layer, or with "mlp"
    Linear(200), Dropout(0.1), BatchNorm, ReLU, Linear.

    In training mode forward gives (z, z'), in evaluation mode z alone, so that `train.fit` measures the main head;
    `features` and `head` are what its penalties and collapse measures read.

    Args:
        backbone: maps x (N, ...) to features (N, dim).
        dim: of the features.
        num_classes: C, at least 2.
        auxiliary: "linear" or "mlp".

    Raises:
        ValueError: an argument is out of range, or the backbone's features have another shape.

    Source: Yang, Zong, Huang, Feng, An 2024 (arXiv 2411.08937) and its code.
    """

    def __init__(self, backbone: nn.Module, dim: int, num_classes: int, auxiliary: str = "linear") -> None:
        super().__init__()
        if not isinstance(backbone, nn.Module):
            raise TypeError(f"backbone must be a torch.nn.Module, but is {type(backbone).__name__}")
        if auxiliary not in ("linear", "mlp"):
            raise ValueError(f"auxiliary must be 'linear' or 'mlp', but is {auxiliary!r}")
        self.dim = checks.whole("dim", dim, 1)
        num_classes = checks.whole("num_classes", num_classes, 2)
        self.backbone = backbone
        self.head = nn.Linear(dim, num_classes)
        self.auxiliary: nn.Module = nn.Linear(dim, num_classes)
        if auxiliary == "mlp":
            self.auxiliary = nn.Sequential(
                nn.Linear(dim, 200), nn.Dropout(0.1), nn.BatchNorm1d(200), nn.ReLU(), nn.Linear(200, num_classes)
            )

    def features(self, x: Tensor) -> Tensor:
        """h, (N, dim)."""
        h = self.backbone(x)
        if h.dim() != 2 or h.shape[1] != self.dim:
            raise ValueError(f"backbone must give features of shape (N, {self.dim}), but gives {tuple(h.shape)}")
        return h

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(z, z') in training mode, z in evaluation mode; each (N, C)."""
        h = self.features(x)
        return (self.head(h), self.auxiliary(h)) if self.training else self.head(h)
