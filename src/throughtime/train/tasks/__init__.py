"""Generated tasks with known long dependencies: the published problems on which a memory is tested."""

from __future__ import annotations

import difflib

from throughtime.errors import ConfigError
from throughtime.train.tasks.memory import Copy, DelayedRecall
from throughtime.train.tasks.order import TemporalOrder
from throughtime.train.tasks.reber import EmbeddedReber
from throughtime.train.tasks.sums import Adding, Multiplication
from throughtime.train.tasks.task import Sample, Task

_TASKS: dict[str, type[Task]] = {task.name: task for task in (Copy, Adding, Multiplication, EmbeddedReber)}
NAMES: tuple[str, ...] = (*_TASKS, "temporal-order", "temporal-order-3", "recall")
"""The names that `by_name` knows."""


def by_name(name: str, lag: int) -> Task:
    """The task of that name with a dependency over about `lag` steps (`Task.lags` says over how many exactly).

    Raises ConfigError for a name that is not in NAMES, or a lag that the task cannot have.
    """
    if name == "temporal-order":
        return TemporalOrder(lag)
    if name == "temporal-order-3":
        return TemporalOrder(lag, symbols=3)
    if name == "recall":
        return DelayedRecall(lag)
    if name not in _TASKS:
        close = difflib.get_close_matches(name, NAMES, 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ConfigError(f"there is no task {name!r}{hint}; the tasks are {', '.join(NAMES)}")
    return _TASKS[name].over(lag)


__all__ = [
    "NAMES",
    "Adding",
    "Copy",
    "DelayedRecall",
    "EmbeddedReber",
    "Multiplication",
    "Sample",
    "Task",
    "TemporalOrder",
    "by_name",
]
