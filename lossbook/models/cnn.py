"""A convolutional network that trains in seconds on small images."""

from __future__ import annotations

from torch import Tensor, nn

from lossbook import checks


class SmallCNN(nn.Module):
    """Two 3x3 convolutions of stride 2, one hidden layer, a linear `head`; ReLU after all but the head.

    channels: in_channels -> width -> 2 width;  features: 4 width;  no normalisation and no dropout, so that many of
    them can be trained at once by `lossbook.train.sweep`.

    Args:
        in_channels: 1 for grey, 3 for colour images.
        num_classes: number of logits, at least 2.
        width: channels after the first convolution.
        image_size: side of the square images in pixels, e.g. 28; at least 4.

    Shapes: x (N, in_channels, image_size, image_size); `features(x)` (N, 4 width); logits (N, num_classes).

    Raises:
        ValueError: a size is not a positive integer, or x has another shape.
    """

    def __init__(self, in_channels: int, num_classes: int, *, width: int = 16, image_size: int) -> None:
        super().__init__()
        checks.whole("width", width, 1)
        side = checks.whole("image_size", image_size, 4)
        self.input_shape = (checks.whole("in_channels", in_channels, 1), side, side)
        quarter = -(-side // 4)  # each stride-2 convolution with padding 1 halves the side, rounding up
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * width * quarter**2, 4 * width),
            nn.ReLU(),
        )
        self.head = nn.Linear(4 * width, checks.whole("num_classes", num_classes, 2))

    def features(self, x: Tensor) -> Tensor:
        """The hidden layer below the head, (N, 4 width)."""
        if tuple(x.shape[1:]) != self.input_shape:
            raise ValueError(
                f"x must have shape (N, {', '.join(map(str, self.input_shape))}), but has {tuple(x.shape)}"
            )
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (N, num_classes)."""
        return self.head(self.features(x))
