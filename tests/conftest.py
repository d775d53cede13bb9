"""What all tests share: one thread on a shared machine, and figures that never open a window."""

import matplotlib
import pytest
import torch

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """No test depends on which ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)
