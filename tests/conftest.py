"""Shared by all tests: the same seed for each, two threads at most, and a Ctrl-C that is heard."""

import signal

import pytest
import torch


def pytest_configure():
    # A shell starts what it runs in the background with SIGINT ignored; tests that press Ctrl-C need it heard.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    torch.set_num_threads(min(2, torch.get_num_threads()))
