"""`throughtime train`: a new run or a continued one, with its progress and what it came to."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from throughtime.cli.entry import parse
from throughtime.cli.options import Train
from throughtime.cli.progress import Board
from throughtime.errors import ConfigError
from throughtime.train import StepRecord, TrainResult, resume, train
from throughtime.train.config import LMConfig
from throughtime.train.rundir import Run


def main(options: Train, words: Sequence[str]) -> int:
    """Train, and print where everything is."""
    if options.print_every < 1:
        raise ConfigError(f"print_every must be at least 1, got {options.print_every}")
    if options.resume is not None:
        return _resume(options, words)
    if not options.text:
        raise ConfigError("name a text file to learn from (throughtime train FILE), or a run to --resume")
    if options.checkpoint != "last":
        raise ConfigError("--checkpoint says where to continue from and needs --resume RUN")
    config = options.config()
    with _Watch(config, options.print_every) as watch:
        result = train(config, options.run, on_start=watch.start, on_step=watch.step)
    return _finish(watch, result)


def _resume(options: Train, words: Sequence[str]) -> int:
    """Read the words again over the run's own options: what then differs is what the user asked to change."""
    assert options.resume is not None
    if options.run is not None:
        raise ConfigError("--run is for a new run and --resume continues an old one; give one of them")
    saved = Run.open(options.resume).config
    again = parse(words, Train.like(saved))
    assert isinstance(again, Train)
    config = again.config()
    if not options.text:
        config = replace(config, text=saved.text)
    before, after = asdict(saved), asdict(config)
    changes = {name: value for name, value in after.items() if value != before[name]}
    with _Watch(config, options.print_every) as watch:
        result = resume(
            options.resume, checkpoint=options.checkpoint, on_start=watch.start, on_step=watch.step, **changes
        )
    return _finish(watch, result)


class _Watch:
    """Shows a run from its first step on; until then there is nothing to show but errors."""

    def __init__(self, config: LMConfig, every: int) -> None:
        self.config = config
        self.board = Board(every)
        self._open = ExitStack()

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def start(self, path: Path, step: int) -> None:
        self.board.print(f"{'continuing' if step else 'run'} {path}" + (f" from step {step}" if step else ""))
        self._open.enter_context(self.board)
        self._on_step = self.board.add(self.config.cell, self.config.steps, step)

    def step(self, record: StepRecord) -> None:
        self._on_step(record)


def _finish(watch: _Watch, result: TrainResult) -> int:
    unit = "byte" if watch.config.symbols == "bytes" else "character"
    if result.best_valid is not None:
        watch.board.print(f"best validation: {result.best_valid:.4f} bits per {unit}, at step {result.best_step}")
    watch.board.print(f"see what it writes: throughtime sample {result.path}")
    return 0
