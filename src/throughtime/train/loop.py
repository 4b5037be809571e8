"""The training loop, from the data to the last checkpoint, and how a run is continued or loaded."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from throughtime.errors import ConfigError, NonFiniteError
from throughtime.train import checkpoint as checkpoints
from throughtime.train.checkpoint import Best
from throughtime.train.config import RunConfig
from throughtime.train.data.prepare import prepare
from throughtime.train.data.prepared import Prepared
from throughtime.train.kinds import LMConfig
from throughtime.train.measures import validate
from throughtime.train.model import SequenceModel, build
from throughtime.train.rundir import Run, new_run_path
from throughtime.train.runlog import RunLog, StepRecord
from throughtime.train.session import Session, private_torch
from throughtime.train.signals import StopSignals
from throughtime.train.updates import apply, gradients, what_broke

OnStart = Callable[[Path, int], None]
OnStep = Callable[[StepRecord], None]


class TrainingStopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM stopped a run after its step was saved; the message says how to go on."""

    def __init__(self, message: str, received: signal.Signals) -> None:
        super().__init__(message)
        self.received = received


@dataclass(frozen=True)
class TrainResult:
    """What a run came to: its directory, a record of each step, its best validation, the unit of its losses."""

    path: Path
    history: list[StepRecord]
    best_valid: float | None
    best_step: int
    unit: str


def train(
    config: RunConfig,
    run_dir: str | Path | None = None,
    *,
    on_start: OnStart | None = None,
    on_step: OnStep | None = None,
) -> TrainResult:
    """Train what `config` describes and keep all of the run in a new directory.

    Without `run_dir` that is ./runs/<data>-<cell>, with -2, -3, ... behind it where that is taken.
    `on_start` is called with the directory and the first step, `on_step` with the record of each step.
    Raises `ConfigError`, `DataError`, `CheckpointError` (it cannot write), `NonFiniteError` (a NaN or an
    infinity, before it reaches the weights), `TrainingStopped` (Ctrl-C or SIGTERM, after saving).
    """
    config = config.anchored()
    place = Path(run_dir) if run_dir is not None else new_run_path(config)
    if isinstance(config, LMConfig) and Path(config.text) in place.absolute().parents:
        raise ConfigError(f"{place} lies in the folder that is learned from; choose another directory with --run")
    data = prepare(config)
    with private_torch(config):
        session = Session(config, data.schema)
        run = Run.create(place, config, data)
        try:
            session.save(run.checkpoints)
        except BaseException:
            run.discard()
            raise
        return _loop(run, data, session, on_start, on_step)


def resume(
    run_dir: str | Path,
    *,
    checkpoint: str = "last",
    on_start: OnStart | None = None,
    on_step: OnStep | None = None,
    **changes: Any,
) -> TrainResult:
    """Continue a run to the very numbers that it would have had uninterrupted.

    `checkpoint` is where to go on from: last, best, or a name such as step-000200.
    `changes` are options such as steps, lr or clip_norm (`RunConfig.may_change`). What the run did after that
    checkpoint is dropped from its log and its checkpoints. Raises as `train` does.
    """
    run = Run.open(Path(run_dir))
    config = run.config.changed(**changes).anchored()
    data = prepare(config, run.schema)
    run.check_data(data.sha256)
    path = checkpoints.find(run.checkpoints, checkpoint)
    with private_torch(config):
        session = Session(config, data.schema)
        session.restore(path)
        if session.step >= config.steps:
            raise ConfigError(
                f"{run.path} is at step {session.step}, and --steps is {config.steps}: there is nothing left to do; "
                f"give more steps to go on, for example --steps {session.step + config.steps}"
            )
        run.remove_leftovers()
        checkpoints.remove_after(run.checkpoints, session.step)
        run.change(config, session.step)
        return _loop(run, data, session, on_start, on_step)


def load(run_dir: str | Path, checkpoint: str = "best") -> Any:
    """The trained model of a run, ready to use (eval mode, on the CPU), with its `schema` and `config`.

    A `LanguageModel`, with its `vocabulary`, where the run learned from text, else a `SequenceModel`.
    `checkpoint` is `best` (the last, where nothing was validated), `last`, or a name such as step-000200.
    Raises `CheckpointError`.
    """
    return load_from(Run.open(Path(run_dir)), checkpoint)


def load_from(run: Run, checkpoint: str) -> SequenceModel:
    """The model of a run that is open."""
    path = checkpoints.find(run.checkpoints, checkpoint)
    with private_torch(replace(run.config, device="cpu", threads=0)):
        model = build(run.config, run.schema)
    checkpoints.read_weights(path, model, run.config.digest())
    return model.eval()


def _loop(run: Run, data: Prepared, session: Session, on_start: OnStart | None, on_step: OnStep | None) -> TrainResult:
    config, model = session.config, session.model
    saved_at, enough = session.step, False
    log = RunLog(run.log, until=session.step)
    try:
        with StopSignals() as stop:
            if on_start:
                on_start(run.path, session.step)
            while session.step < config.steps and not stop.received and not enough:
                began = time.perf_counter()
                update = gradients(session, data.train)
                if not update.finite:
                    raise _non_finite(run, session, what_broke(model, update))
                apply(session, update)
                seconds = time.perf_counter() - began

                valid, better, last = None, False, session.step == config.steps
                if data.valid and (session.step % config.valid_every == 0 or last):
                    valid = validate(model, data.valid, config.valid_windows)
                    if not math.isfinite(valid):
                        raise _non_finite(run, session, f"the validation loss is {valid}", validation=True)
                    if better := session.best.loss is None or valid < session.best.loss:
                        session.best = Best(valid, session.step)
                record = StepRecord(session.step, update.loss, update.norm, seconds, valid)
                log.append(record)
                enough = valid is not None and _out_of_patience(config, log, session.best)
                if better or last or enough or session.step % config.checkpoint_every == 0 or stop.received:
                    log.sync()
                    session.save(run.checkpoints)
                    saved_at = session.step
                if on_step:
                    on_step(record)

            if stop.received and saved_at < session.step:  # the signal came after the step had looked for it
                log.sync()
                session.save(run.checkpoints)
        if stop.received and session.step < config.steps and not enough:
            message = f"stopped at step {session.step} and saved; continue with: {run.resume_command()}"
            raise TrainingStopped(message, stop.received)
    finally:
        log.close()
    return TrainResult(run.path, log.records, session.best.loss, session.best.step, data.schema.unit)


def _out_of_patience(config: RunConfig, log: RunLog, best: Best) -> bool:
    """Whether the last `patience` validations were all no better than the best."""
    if not config.patience:
        return False
    return sum(r.valid is not None and r.step > best.step for r in log.records[best.step :]) >= config.patience


def _non_finite(run: Run, session: Session, what: str, validation: bool = False) -> NonFiniteError:
    """The error, with a checkpoint from which smaller steps can help.

    A checkpoint of the very weights that gave a NaN is no use: the same step would fail in the same way.
    """
    config = session.config
    failed = session.step if validation else session.step + 1
    steps = [s for s in checkpoints.steps_in(run.checkpoints) if s < session.step]
    if not steps:
        return NonFiniteError(
            f"{what} at step {failed}, with the weights that the run began with: start another run, with another "
            f"--seed, a smaller --window, or a cell other than {config.cell}"
        )
    name = checkpoints.step_name(steps[-1])
    clip = config.clip_norm / 2 or 1.0
    command = run.resume_command(f"--checkpoint {name} --lr {config.lr / 2:g} --clip-norm {clip:g}")
    return NonFiniteError(
        f"{what} at step {failed}; the last good checkpoint is {run.checkpoints / name}; "
        f"continue from it with smaller steps: {command}"
    )
