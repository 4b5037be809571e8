"""One decision for all processes of a distributed training: each does what the most careful one wants."""

from __future__ import annotations

import math

import torch
from torch import distributed, nn

from throughtime.cures.guard_checks import ELSEWHERE, Fault


def together() -> bool:
    """Whether there are other processes to agree with."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def device_of(module: nn.Module) -> torch.device:
    """Where its parameters lie, and so what the processes talk over."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def most(value: int, device: torch.device) -> int:
    """The largest of the values that the processes bring; every one of them must call it."""
    if not together():
        return value
    agreed = torch.tensor(value, device=device)
    distributed.all_reduce(agreed, op=distributed.ReduceOp.MAX)
    return int(agreed)


def agreed(fault: Fault | None, model: nn.Module) -> Fault | None:
    """What one process found, all have: each is at the same place of its loop, and asks once."""
    if most(int(fault is not None), device_of(model)) and fault is None:
        return Fault(ELSEWHERE, math.nan)
    return fault
