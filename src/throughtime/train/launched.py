"""What torchrun tells a process that it starts: which one it is, of how many. Known before torch is imported."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TypeVar

from throughtime.errors import NonFiniteError

E = TypeVar("E", bound=BaseException)

_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launched:
    """The place of this process among those of one training; `local` counts those of this machine."""

    rank: int
    size: int
    local: int
    address: str


def launched() -> Launched | None:
    """This process' place, or None where there is but one process."""
    if any(name not in os.environ for name in _NAMES):
        return None
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local = int(os.environ.get("LOCAL_RANK", rank))
    except ValueError:
        return None
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    return Launched(rank, size, local, address) if size > 1 else None


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    place = launched()
    return place is None or place.rank == 0


def leave_to_first(error: E) -> E:
    """Mark an error that all processes have: the first one tells of it."""
    error.told_by_first = True  # type: ignore[attr-defined]
    return error


def left_to_first(error: BaseException) -> bool:
    """Whether another process tells of this error; all come to the same bad numbers."""
    return not is_first() and (isinstance(error, NonFiniteError) or getattr(error, "told_by_first", False))


def command() -> str:
    """How `throughtime` was called: through torchrun, where there are several processes."""
    place = launched()
    if place is None:
        return "throughtime"
    here = os.environ.get("LOCAL_WORLD_SIZE", "")
    words = f"torchrun --nproc-per-node {here or place.size}"
    return f"{words}{' ... (as before)' if here not in ('', str(place.size)) else ''} -m throughtime"
