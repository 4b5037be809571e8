"""Random numbers drawn once more as they were, without a trace on the generators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch


class RandomState(NamedTuple):
    """The generators' states: the CPU's, and that of the CUDA device in use, if one is."""

    cpu: torch.Tensor
    device: torch.device | None
    cuda: torch.Tensor | None


def random_state(device: torch.device) -> RandomState:
    """The states now; reading them changes nothing."""
    on_cuda = device.type == "cuda"
    return RandomState(
        torch.get_rng_state(), device if on_cuda else None, torch.cuda.get_rng_state(device) if on_cuda else None
    )


@contextmanager
def drawing_from(state: RandomState) -> Iterator[None]:
    """Within it, random numbers are drawn from `state`; after it, the generators are where they were before."""
    device = state.device or torch.device("cpu")
    now = random_state(device)
    _set(state)
    try:
        yield
    finally:
        _set(now)


def _set(state: RandomState) -> None:
    torch.set_rng_state(state.cpu)
    if state.cuda is not None and state.device is not None:
        torch.cuda.set_rng_state(state.cuda, state.device)
