"""How a process meets the others that torchrun started with it, and how it ends when one of them is lost."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import distributed

from throughtime.errors import ConfigError, ProcessError, ThroughtimeError
from throughtime.train.distributed import ALONE, Group
from throughtime.train.launched import Launched, launched, leave_to_first, left_to_first

MEET = datetime.timedelta(minutes=10)
"""So long a process waits for the others to begin."""
WAIT = datetime.timedelta(hours=2)
"""So long it waits for them within a step: the first one may be writing to a slow disk."""
GRACE = 1.0
"""Seconds that a process lives on when all fail, for the first to tell: a launcher ends all when one has ended."""
_LAST_WORDS = "throughtime/last words"
_current: list[Group] = []


@contextmanager
def joined() -> Iterator[Group]:
    """The group that torchrun started this process in, or `ALONE`; within another `joined` it is the same one.

    Raises `ConfigError` if the others cannot be met, and `ProcessError` within, when one of them is lost.
    """
    place = launched()
    if _current:
        yield _current[-1]
        return
    if place is None:
        yield ALONE
        return
    store = _meet(place)
    group = Group(place.rank, place.size, place.local)
    _current.append(group)
    try:
        yield group
    except Exception as error:
        if not isinstance(error, ThroughtimeError) and isinstance(error, RuntimeError) and _is_lost(error):
            raise leave_to_first(ProcessError(_why(store if group.first else None))) from None
        if store is not None and not left_to_first(error):
            with suppress(RuntimeError):  # the store may have gone with the process that kept it
                store.set(_LAST_WORDS, f"process {group.rank}: {error}")
        if not group.first:
            time.sleep(GRACE)
        raise
    else:
        if store is not None:
            distributed.destroy_process_group()
    finally:
        _current.pop()


def _meet(place: Launched) -> Any:
    """Make torch's process group, and give the store that it met at; None if the caller has made one."""
    if not distributed.is_available():
        raise ConfigError("this build of torch has no torch.distributed; start one process, without torchrun")
    if distributed.is_initialized():
        return None
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and distributed.is_nccl_available() else "gloo"
    try:
        store, rank, size = next(iter(distributed.rendezvous("env://", timeout=MEET)))
        store.set_timeout(WAIT)
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=WAIT)
    except (RuntimeError, ValueError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ConfigError(
            f"process {place.rank} of {place.size} cannot meet the others at {place.address} ({why}); start them with "
            "torchrun, which gives each its place"
        ) from None
    return store


def _why(store: Any) -> str:
    """What another process said before it ended, if it could; without a store, that one has ended."""
    with suppress(RuntimeError):
        if store is not None and store.check([_LAST_WORDS]):
            return " ".join(store.get(_LAST_WORDS).decode(errors="replace").split())
    return (
        "another process of this training ended, and so do all; what was saved last is unharmed, and --resume RUN goes "
        "on from there"
    )


def _is_lost(error: RuntimeError) -> bool:
    """gloo and NCCL report a connection that broke as a RuntimeError known by its text."""
    signs = ("connection", "gloo", "peer", "nccl", "socket", "timed out")
    return isinstance(error, distributed.DistError) or any(sign in str(error).lower() for sign in signs)
