"""Progress of one run or several: live bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from throughtime.train.runlog import StepRecord


class Board:
    """Shows a row for each run that is added; enter it before the first step.

    In a terminal rich draws bars, without colour where NO_COLOR is set. Elsewhere each run prints a line
    every `every` steps, at each validation and at its last step.
    """

    def __init__(self, every: int = 50, file: TextIO | None = None) -> None:
        self.every = every
        self.console = Console(file=file or sys.stdout, highlight=False, soft_wrap=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TextColumn("{task.fields[line]}"),
        )
        self._bars = Progress(*columns, console=self.console) if self.console.is_terminal else None

    def __enter__(self) -> Board:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._bars:
            self._bars.stop()

    def print(self, line: str) -> None:
        """Print a line over the bars, as it is."""
        self.console.print(line, markup=False)

    def add(self, name: str, steps: int, start: int = 0, unit: str = "bits") -> Callable[[StepRecord], None]:
        """Add a run that goes on from step `start` to `steps`, its loss in `unit`; returns an `on_step` for `train`."""
        row = _Row(steps, unit)
        task = self._bars.add_task(name, total=steps, completed=start, line="") if self._bars else None

        def on_step(record: StepRecord) -> None:
            row.take(record)
            if self._bars and task is not None:
                self._bars.update(task, completed=record.step, line=row.line("/s"))
            elif record.step % self.every == 0 or record.valid is not None or record.step == steps:
                self.print(f"{name}  step {record.step}/{steps}  {row.line()}")

        return on_step


class _Row:
    """The numbers of one run, the speed taken over its last 50 steps."""

    def __init__(self, steps: int, unit: str) -> None:
        self.steps, self.unit = steps, unit
        self.seconds: deque[float] = deque(maxlen=50)
        self.valid: float | None = None

    def take(self, record: StepRecord) -> None:
        self.record = record
        self.seconds.append(record.seconds)
        self.valid = record.valid if record.valid is not None else self.valid

    def line(self, unit: str = " steps/s") -> str:
        r, speed = self.record, len(self.seconds) / max(sum(self.seconds), 1e-9)
        pace = f"{speed:{'.0f' if speed >= 100 else '.3g'}}{unit}"
        valid = f"  valid {self.valid:.3f}" if self.valid is not None else ""
        left = _duration((self.steps - r.step) / speed)
        return f"{r.loss:.3f} {self.unit}{valid}  |grad| {r.grad_norm:.3g}  {pace}  {left} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
