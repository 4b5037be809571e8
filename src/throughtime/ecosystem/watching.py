"""A watch in a loop that somebody else runs: opened and closed by that loop's hooks, its records as numbers."""

from __future__ import annotations

import json
import math
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

from throughtime.diagnosis.budget import Budget
from throughtime.diagnosis.history import Record, read_record
from throughtime.diagnosis.watch import watch
from throughtime.diagnosis.watcher import Watch
from throughtime.errors import ConfigError, FlowError


class Watching:
    """A `throughtime.watch` whose block is two calls; see there for budget and path.

    A training that is continued goes on in a file of its own: watch.jsonl, then watch-2.jsonl, watch-3.jsonl. Its
    `history` begins with the records from before.
    """

    def __init__(self, budget: float, path: str | os.PathLike[str] | None) -> None:
        Budget(budget)  # what makes no sense is said now
        self.budget, self.path = budget, None if path is None else Path(path)
        self.watch: Watch | None = None
        self._block = ExitStack()
        self._saved: dict[str, Any] | None = None
        self._told = 0

    @property
    def history(self) -> list[Record]:
        """The records, oldest first."""
        return self.watch.history if self.watch is not None else _records(self._saved)

    def start(self, model: nn.Module) -> None:
        """Training begins, or goes on from what `load_state_dict` was given."""
        self.stop()
        path, number = self.path, 1
        while self._saved is not None and path is not None and path.exists() and self.path is not None:
            number += 1
            path = self.path.with_name(f"{self.path.stem}-{number}{self.path.suffix}")
        self.watch = self._block.enter_context(watch(model, self.budget, path))
        if self._saved is not None:
            self.watch.steps = int(self._saved["steps"])
            self.watch.history += _records(self._saved)
            self._saved = None
        self._told = len(self.watch.history)

    def stop(self) -> None:
        """Training is over: the last step that was caught is measured, the file is finished."""
        self._block.close()

    def news(self) -> dict[str, float]:
        """The numbers of the records since the last call, for a tracker; empty without a new one."""
        if self.watch is None or len(self.watch.history) == self._told:
            return {}
        self._told = len(self.watch.history)
        return as_numbers(self.watch.history[-1])

    def state_dict(self) -> dict[str, Any]:
        """The steps and the records so far, as plain numbers and strings; empty before training began."""
        if self.watch is None:
            return dict(self._saved or {})
        return {"steps": self.watch.steps, "records": [r.line() for r in self.watch.history]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there when training begins. Raises ConfigError for anything else."""
        try:
            _records(state or None)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"this is not the state of a watch: {type(error).__name__}: {error}") from None
        self.stop()
        self._saved, self.watch = (dict(state) or None), None

    def diagnosis(self, **options: Any) -> Any:
        """What the last measured step means; see `Watch.diagnosis`. Raises FlowError where nothing was measured."""
        if self.watch is None:
            raise FlowError("nothing was measured: training has not begun")
        return self.watch.diagnosis(**options)

    def __str__(self) -> str:
        return "Watch: training has not begun" if self.watch is None else str(self.watch)


def as_numbers(record: Record) -> dict[str, float]:
    """What a tracker is told of a record: the gradient horizon and half-life of each recurrence, in steps.

    A half-life that was not reached within the window is left out.
    """
    found: dict[str, float] = {}
    for seen in record.recurrences:
        place = f"{seen.name}/layer_{seen.layer}{'_reverse' if seen.reverse else ''}"
        if seen.horizon is not None:
            found[f"gradient_horizon/{place}"] = float(seen.horizon.steps)
        if seen.half_life is not None and math.isfinite(seen.half_life):
            found[f"gradient_half_life/{place}"] = seen.half_life
    return found


def _records(saved: dict[str, Any] | None) -> list[Record]:
    return [] if saved is None else [read_record(json.loads(line)) for line in saved["records"]]
