"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]

# Each pytest worker gets one thread: two workers on two cores then do not fight over them.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data files named by LOSSBOOK_DATA; tests that need it are skipped without it."""
    folder = Path(os.environ.get("LOSSBOOK_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "mnist").is_dir():
        pytest.skip("no real data files here: set LOSSBOOK_DATA to a folder that holds them")
    return folder


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
