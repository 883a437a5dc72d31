"""What holds for every test."""

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def same_numbers_every_time() -> None:
    """Seed every generator, and let one thread sum in one order."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - code under test may use the global generator
    torch.set_num_threads(1)
