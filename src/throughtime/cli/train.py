"""`throughtime train`: a new run or a continued one, with its progress and what it came to."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

from throughtime.cli.entry import parse
from throughtime.cli.progress import Board
from throughtime.cli.train_options import kind_in, like
from throughtime.cures.guard_report import Incident
from throughtime.ecosystem.tracking import Tracking, remembered
from throughtime.errors import ConfigError
from throughtime.train import StepRecord, TrainResult, resume, train
from throughtime.train.config import RunConfig
from throughtime.train.distributed import Group
from throughtime.train.guarding import counted, sentence
from throughtime.train.meeting import joined
from throughtime.train.rundir import Run

_NEEDED = {
    "text": "name a text file to learn from (throughtime train FILE), or a run to --resume",
    "forecast": "name a table to learn from (throughtime train forecast TABLE --target COLUMN), or a run to --resume",
    "label": "name a table to learn from (throughtime train label TABLE --label COLUMN), or a run to --resume",
    "notes": "name an archive to learn from (throughtime train notes ARCHIVE), or a run to --resume",
    "task": "name a task to learn (throughtime train task NAME --lag STEPS), or a run to --resume",
}
_USE = {
    "text": "see what it writes: throughtime sample",
    "forecast": "see what comes next: throughtime forecast",
}


def main(options: Any, words: Sequence[str]) -> int:
    """Train, and print where everything is."""
    with joined() as group:
        with group.together():
            _check(options)
        if options.resume is not None:
            return _resume(options, words, group)
        with group.together():
            config = _described(options)
        with _Watch(config, options.print_every, options.log_to if group.first else (), quiet=not group.first) as watch:
            result = train(config, options.run, on_start=watch.start, on_step=watch.step, on_incident=watch.incident)
        return _finish(watch, result)


def _check(options: Any) -> None:
    if options.print_every < 1:
        raise ConfigError(f"print_every must be at least 1, got {options.print_every}")
    if options.resume is not None and options.run is not None:
        raise ConfigError("--run is for a new run and --resume continues an old one; give one of them")


def _described(options: Any) -> RunConfig:
    """What a new run is to be."""
    if not getattr(options, options.source):
        raise ConfigError(_NEEDED[options.kind])
    for column in ("target", "label"):
        if getattr(options, column, None) == "":
            raise ConfigError(f"say which column with --{column}")
    if options.checkpoint != "last":
        raise ConfigError("--checkpoint says where to continue from and needs --resume RUN")
    config: RunConfig = options.config()
    return config


def _resume(options: Any, words: Sequence[str], group: Group) -> int:
    """Read the words again over the run's own options: what then differs is what the user asked to change."""
    saved = group.from_first(lambda: Run.open(options.resume).config)
    with group.together():
        config = _changed(options, words, saved)
    before, after = asdict(saved), asdict(config)
    changes = {name: value for name, value in after.items() if value != before[name]}
    log_to, old = (options.log_to, options.resume) if group.first else ((), None)
    with _Watch(config, options.print_every, log_to, old, quiet=not group.first) as watch:
        result = resume(
            options.resume, checkpoint=options.checkpoint, on_start=watch.start, on_step=watch.step,
            on_incident=watch.incident, **changes,
        )  # fmt: skip
    return _finish(watch, result)


def _changed(options: Any, words: Sequence[str], saved: RunConfig) -> RunConfig:
    """The description of a run as it is to go on."""
    if kind_in(words) not in (None, saved.kind):
        raise ConfigError(f"{options.resume} is a run of the kind {saved.kind}, not {kind_in(words)}")
    config: RunConfig = parse(words, like(saved)).config()
    if not getattr(options, saved.source, ""):
        where: dict[str, Any] = {saved.source: getattr(saved, saved.source)}
        config = replace(config, **where)
    return config


class _Watch:
    """Shows a run from its first step on; until then there is nothing to show but errors."""

    def __init__(
        self, config: RunConfig, every: int, log_to: Sequence[str], old: Path | None = None, quiet: bool = False
    ) -> None:
        self.config = config
        self.board = Board(every, StringIO() if quiet else None)  # of several processes one prints
        self._open = ExitStack()
        again = () if old is None or log_to else remembered(old)
        self._tracking = Tracking(log_to, self.board.print, again) if log_to or again else None

    def __enter__(self) -> _Watch:
        if self._tracking is not None:
            self._open.enter_context(self._tracking)
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def start(self, path: Path, step: int) -> None:
        self.board.print(f"{'continuing' if step else 'run'} {path}" + (f" from step {step}" if step else ""))
        self._open.enter_context(self.board)
        unit = "bits" if self.config.kind == "text" else "loss"
        self._on_step = self.board.add(self.config.cell, self.config.steps, step, unit)
        if self._tracking is not None:
            self._tracking.start(path, step)

    def step(self, record: StepRecord) -> None:
        self._on_step(record)
        if self._tracking is not None:
            self._tracking.step(record)

    def incident(self, found: Incident) -> None:
        self.board.print(f"guard: {sentence(found)}")


def _finish(watch: _Watch, result: TrainResult) -> int:
    if result.history and result.history[-1].step < watch.config.steps:
        watch.board.print(f"stopped at step {result.history[-1].step}: {watch.config.patience} validations no better")
    for line in (*guarded(result), *seen(result)):
        watch.board.print(line)
    if result.best_valid is not None:
        watch.board.print(f"best validation: {result.best_valid:.4f} {result.unit}, at step {result.best_step}")
    watch.board.print(f"{_USE.get(watch.config.kind, 'see how good it is: throughtime evaluate')} {result.path}")
    return 0


def guarded(result: TrainResult) -> list[str]:
    """What the guard did, in a line; none where all was well."""
    if not result.incidents:
        return []
    return [f"guard: {counted(result.incidents)}; each is told in {result.path / 'guard.jsonl'}"]


def seen(result: TrainResult) -> list[str]:
    """How far back the gradient of the last recurrent layer reached, at the first measurement and the last."""
    found = [(r.step, s) for r in result.watched for s in r.recurrences[-1:]]
    if not found:
        return []
    (first, before), (last, now) = found[0], found[-1]
    if now.horizon is None:
        return [f"watch: {now}"]
    earlier = f" (at step {first}: {before.horizon})" if first != last and before.horizon is not None else ""
    reach = f"the gradient of {now.place} reaches {now.horizon} back{earlier}"
    return [f"watch: at step {last} {reach}, of {now.steps} in a window"]
