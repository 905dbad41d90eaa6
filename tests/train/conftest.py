from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch


@pytest.fixture
def blobs():
    """Three overlapping Gaussian classes in six dimensions, 130 / 60 / 50 examples."""
    generator = torch.Generator().manual_seed(7)
    centres = 2 * torch.randn(3, 6, generator=generator)

    def split(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.arange(n) % 3
        return centres[y] + torch.randn(n, 6, generator=generator), y

    return SimpleNamespace(train=split(130), val=split(60), test=split(50), num_classes=3)
