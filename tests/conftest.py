"""Shared by all tests: the same seed for each, and two threads at most."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    torch.set_num_threads(min(2, torch.get_num_threads()))
