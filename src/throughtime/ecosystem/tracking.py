"""A run's own records told to trackers: each step once, whatever is killed, continued or broken."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from throughtime.diagnosis.history import read_record
from throughtime.ecosystem.extras import needed
from throughtime.ecosystem.trackers import TRACKERS, Place
from throughtime.ecosystem.watching import as_numbers
from throughtime.errors import ConfigError
from throughtime.files import write_file
from throughtime.live.follow import Tail
from throughtime.train.rundir import Run
from throughtime.train.runlog import StepRecord, read_log

FOLDER = "trackers"
"""In a run's directory: what its trackers were told."""


def remembered(run: Path) -> tuple[str, ...]:
    """The trackers that a run was logged to before."""
    return tuple(name for name in TRACKERS if (run / FOLDER / f"{name}.told").exists())


class Tracking:
    """Tells trackers of a run: loss, gradient norm, validation, horizons and the guard's incidents, by step.

        with Tracking(["tensorboard", "wandb"]) as tracking:
            train(config, on_start=tracking.start, on_step=tracking.step)

    say:   is given one line where a tracker breaks; training goes on without that one.
    again: more of them, such as `remembered` gives; where its package is not here, that is said, and no error.

    Told are only what stands in the run's own files, each step once. A continued run first tells what its trackers
    have missed; steps that come again (after a kill, or because the guard went back) are not told twice. Continued
    with options that lead elsewhere from before what was told, a tracker gets a new run of its own, with all steps up
    to there. What a tracker had not yet written when the process was killed is lost to it, and still in RUN/log.jsonl.

    Raises ConfigError for a tracker that does not exist, or whose package is not installed; at once, before training.
    """

    def __init__(self, names: Iterable[str], say: Callable[[str], None] = print, again: Iterable[str] = ()) -> None:
        self.names: list[str] = []
        self.say = say
        for name in dict.fromkeys(names):
            self._add(name)
        for name in again:
            try:
                self._add(name)
            except ConfigError as error:
                self.say(f"{error}; the run goes on without it")
        self._told: list[_Told] = []
        self._watched: Tail | None = None
        self._guarded: Tail | None = None
        self._horizons: list[tuple[int, dict[str, float]]] = []
        self._incidents = 0

    def _add(self, name: str) -> None:
        if name not in TRACKERS:
            raise ConfigError(f"there is no tracker {name!r}; there are {', '.join(TRACKERS)}")
        needed(TRACKERS[name].needs, name, f"--log-to {name}")
        self.names.append(name)

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def start(self, path: Path, step: int) -> None:
        """The run in `path` begins, or goes on from `step`: the trackers are opened."""
        if not self.names:
            return
        self._watched, self._guarded = Tail(path / "watch.jsonl"), Tail(path / "guard.jsonl")
        run = Run.open(path)
        left = bool(run.changes) and run.changes[-1]["step"] == step and _matters(run)
        for name in self.names:
            told = _Told(name, path)
            if self._safely(told, lambda told=told: told.open(run.config, step, left)):  # type: ignore[misc]
                self._told.append(told)
        self._look()
        for record in read_log(path / "log.jsonl", until=step):
            self._tell(record)

    def step(self, record: StepRecord) -> None:
        """One more step of the run."""
        if self._told:
            self._look()
            self._tell(record)

    def close(self) -> None:
        """The run is over, or stopped: what was measured since the last step is told, and the trackers are closed."""
        self._look()
        for told in tuple(self._told):
            if self._safely(told, lambda told=told: told.rest(self._horizons)):  # type: ignore[misc]
                self._safely(told, told.close)
        self._told = []

    def _tell(self, record: StepRecord) -> None:
        numbers = {k: float(v) for k, v in asdict(record).items() if v is not None and k != "step"}
        if self._incidents:
            numbers["guard/incidents"] = float(self._incidents)
        for told in tuple(self._told):
            self._safely(told, lambda told=told: told.tell(record.step, numbers, self._horizons))  # type: ignore[misc]

    def _look(self) -> None:
        """Reads what the run's watch and guard have written since."""
        if self._watched is None or self._guarded is None:
            return
        anew, lines = self._watched.read()
        self._horizons = [] if anew else self._horizons[-8:]
        for line in lines:
            try:
                found = read_record(line) if "recurrences" in line else None
            except (KeyError, TypeError, ValueError):
                continue
            if found is not None:
                self._horizons.append((found.step, as_numbers(found)))
        anew, lines = self._guarded.read()
        self._incidents = (0 if anew else self._incidents) + sum("fault" in line for line in lines)

    def _safely(self, told: _Told, call: Callable[[], None]) -> bool:
        try:
            call()
        except Exception as error:  # whatever a tracker does, the training goes on
            if told in self._told:
                self._told.remove(told)
            why = " ".join(str(error).split())[:200]
            self.say(f"{told.name} failed ({type(error).__name__}: {why}); the run goes on without it")
            return False
        return True


class _Told:
    """One tracker, and a file that remembers what it was told: its part, the last step, the last measured step.

    The file is written before the tracker is called, so that a kill between the two can lose a step to the tracker,
    and never doubles one.
    """

    def __init__(self, name: str, run: Path) -> None:
        self.name, self.run = name, run
        self.part, self.last, self.watched = 1, 0, 0
        self._path = run / FOLDER / f"{name}.told"
        self._file = -1

    def open(self, config: Any, step: int, left: bool) -> None:
        """Opens the tracker. left: whether the run goes on from `step` in another way than before."""
        self._path.parent.mkdir(exist_ok=True)
        if self._path.exists():
            self.part, self.last, self.watched = map(int, self._path.read_text("ascii").split())
        if left and step < self.last:
            self.part, self.last, self.watched = self.part + 1, 0, 0
        plain = {"kind": config.kind, **asdict(config)}
        self._tracker = TRACKERS[self.name](Place(self.run, _id(self._path.with_name("id")), plain, self.part))
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o666)

    def tell(self, step: int, numbers: Mapping[str, float], horizons: Sequence[tuple[int, dict[str, float]]]) -> None:
        """One step, with what was measured up to it; nothing if it was told before."""
        if step <= self.last:
            return
        more = self._measured(step, horizons)
        self._remember(step)
        self._tracker.tell(step, {**numbers, **more})

    def rest(self, horizons: Sequence[tuple[int, dict[str, float]]]) -> None:
        """What was measured last, and known only after the last step."""
        if more := self._measured(self.last, horizons):
            self._remember(self.last)
            self._tracker.tell(self.last, more)

    def close(self) -> None:
        """Closes the tracker and the file."""
        try:
            self._tracker.close()
        finally:
            os.close(self._file)

    def _measured(self, step: int, horizons: Sequence[tuple[int, dict[str, float]]]) -> dict[str, float]:
        found: dict[str, float] = {}
        for at, numbers in horizons:
            if self.watched < at <= step:
                self.watched = at
                found.update(numbers)
        return found

    def _remember(self, step: int) -> None:
        self.last = step
        os.pwrite(self._file, f"{self.part:<12}{step:<12}{self.watched:<12}\n".encode(), 0)


def _matters(run: Run) -> bool:
    """Whether what was changed last leads to other losses."""
    same = {"checkpoint_every", "patience", "step", "threads", "watch_budget", run.config.source}
    same |= {"steps"} if run.config.schedule == "constant" else set()
    return not set(run.changes[-1]) <= same


def _id(path: Path) -> str:
    """A few letters that are the run's own, drawn once."""
    try:
        return path.read_text("ascii").strip()
    except FileNotFoundError:
        found = secrets.token_hex(4)
        write_file(path, f"{found}\n".encode())
        return found
