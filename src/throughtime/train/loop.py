"""The training loop, from the text to the last checkpoint, and how a run is continued or loaded."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from throughtime.errors import ConfigError, NonFiniteError
from throughtime.train import checkpoint as checkpoints
from throughtime.train.checkpoint import Best
from throughtime.train.config import LMConfig
from throughtime.train.data import Streams, TextData, read_text
from throughtime.train.model import LanguageModel
from throughtime.train.rundir import Run, new_run_path
from throughtime.train.runlog import RunLog, StepRecord
from throughtime.train.session import Session, detach_state, private_torch
from throughtime.train.signals import StopSignals

OnStart = Callable[[Path, int], None]
OnStep = Callable[[StepRecord], None]


class TrainingStopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM stopped a run after its step was saved; the message says how to go on."""

    def __init__(self, message: str, received: signal.Signals) -> None:
        super().__init__(message)
        self.received = received


@dataclass(frozen=True)
class TrainResult:
    """What a run came to: its directory, a record of each step, its best validation in bits per symbol."""

    path: Path
    history: list[StepRecord]
    best_valid: float | None
    best_step: int


def train(
    config: LMConfig,
    run_dir: str | Path | None = None,
    *,
    on_start: OnStart | None = None,
    on_step: OnStep | None = None,
) -> TrainResult:
    """Train a language model on a text and keep all of the run in a new directory.

    Without `run_dir` that is ./runs/<text>-<cell>, with -2, -3, ... behind it where that is taken.
    `on_start` is called with the directory and the first step, `on_step` with the record of each step.
    Raises `ConfigError`, `DataError`, `CheckpointError` (it cannot write), `NonFiniteError` (a NaN or an
    infinity, before it reaches the weights), `TrainingStopped` (Ctrl-C or SIGTERM, after saving).
    """
    config = replace(config, text=str(Path(config.text).absolute()))
    text = read_text(config)
    with private_torch(config):
        session = Session(config, text.vocabulary)
        run = Run.create(Path(run_dir) if run_dir is not None else new_run_path(config), config, text)
        try:
            session.save(run.checkpoints)
        except BaseException:
            run.discard()
            raise
        return _loop(run, text, session, on_start, on_step)


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
    `changes` are options such as steps, lr or clip_norm (`throughtime.train.config.CHANGEABLE`). What the run
    did after that checkpoint is dropped from its log and its checkpoints. Raises as `train` does.
    """
    run = Run.open(Path(run_dir))
    if "text" in changes:
        changes["text"] = str(Path(changes["text"]).absolute())
    config = run.config.changed(**changes)
    text = read_text(config, run.vocabulary)
    run.check_text(text)
    path = checkpoints.find(run.checkpoints, checkpoint)
    with private_torch(config):
        session = Session(config, text.vocabulary)
        session.restore(path)
        if session.step >= config.steps:
            raise ConfigError(
                f"{run.path} is at step {session.step}, and --steps is {config.steps}: there is nothing "
                f"left to do; "
                f"give more steps to go on, for example --steps {session.step + config.steps}"
            )
        run.remove_leftovers()
        checkpoints.remove_after(run.checkpoints, session.step)
        run.change(config, session.step)
        return _loop(run, text, session, on_start, on_step)


def load(run_dir: str | Path, checkpoint: str = "best") -> LanguageModel:
    """The trained model of a run, ready to use (eval mode, on the CPU), with its `vocabulary` and `config`.

    `checkpoint` is `best` (the last, where nothing was validated), `last`, or a name such as step-000200.
    Raises `CheckpointError`.
    """
    run = Run.open(Path(run_dir))
    path = checkpoints.find(run.checkpoints, checkpoint)
    with private_torch(replace(run.config, device="cpu", threads=0)):
        model = LanguageModel(run.config, run.vocabulary)
    checkpoints.read_weights(path, model, run.config.digest())
    return model.eval()


def _loop(run: Run, text: TextData, session: Session, on_start: OnStart | None, on_step: OnStep | None) -> TrainResult:
    config, model = session.config, session.model
    saved_at = session.step
    log = RunLog(run.log, until=session.step)
    try:
        with StopSignals() as stop:
            if on_start:
                on_start(run.path, session.step)
            while session.step < config.steps and not stop.received:
                began = time.perf_counter()

                # one window of the text; the state is carried on, but not over the end of the streams
                position = session.step % len(text.train)
                x, y = text.train.window(position)
                logits, state = model(x, session.state if position else None)
                loss = functional.cross_entropy(logits.flatten(0, 1), y.flatten())

                session.optimiser.zero_grad()
                loss.backward()
                norm = gradient_norm(model)
                if not (loss.isfinite() and math.isfinite(norm)):
                    raise _non_finite(run, session, _what_broke(model, float(loss.detach())))
                if config.clip_norm and norm > config.clip_norm:
                    scale_gradient(model, config.clip_norm / norm)
                session.optimiser.step()
                session.state = detach_state(state)
                session.step += 1
                seconds = time.perf_counter() - began

                bits, last = float(loss.detach()) / math.log(2), session.step == config.steps
                valid, better = None, False
                if text.valid and (session.step % config.valid_every == 0 or last):
                    valid = validate(model, text.valid, config.valid_windows)
                    if not math.isfinite(valid):
                        raise _non_finite(run, session, f"the validation loss is {valid}", validation=True)
                    if better := session.best.bits is None or valid < session.best.bits:
                        session.best = Best(valid, session.step)
                record = StepRecord(session.step, bits, norm, seconds, valid)
                log.append(record)
                if better or last or session.step % config.checkpoint_every == 0 or stop.received:
                    log.sync()
                    session.save(run.checkpoints)
                    saved_at = session.step
                if on_step:
                    on_step(record)

            if stop.received and saved_at < session.step:  # the signal came after the step had looked for it
                log.sync()
                session.save(run.checkpoints)
        if stop.received and session.step < config.steps:
            message = f"stopped at step {session.step} and saved; continue with: {run.resume_command()}"
            raise TrainingStopped(message, stop.received)
    finally:
        log.close()
    return TrainResult(run.path, log.records, session.best.bits, session.best.step)


def validate(model: LanguageModel, streams: Streams, windows: int) -> float:
    """Mean loss in bits per symbol over the first `windows` windows, the state carried, without dropout."""
    total, count, state = 0.0, min(windows, len(streams)), None
    model.eval()
    with torch.no_grad():
        for index in range(count):
            x, y = streams.window(index)
            logits, state = model(x, state)
            total += float(functional.cross_entropy(logits.flatten(0, 1), y.flatten()))
    model.train()
    return total / count / math.log(2)


def gradient_norm(model: torch.nn.Module) -> float:
    """Global norm of the gradient, sqrt(sum ||g||^2), in float64, lest large gradients overflow."""
    squares = [torch.linalg.vector_norm(p.grad, dtype=torch.float64).square() for p in _with_grad(model)]
    return float(torch.stack(squares).sum().sqrt())


def scale_gradient(model: torch.nn.Module, factor: float) -> None:
    """Shorten the gradient and keep its direction (Pascanu 2013)."""
    for p in _with_grad(model):
        p.grad.mul_(factor)  # type: ignore[union-attr]


def _with_grad(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.grad is not None]


def _what_broke(model: torch.nn.Module, loss: float) -> str:
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    broken = [name for name, p in model.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all())]
    more = f" (and of {len(broken) - 1} more)" if len(broken) > 1 else ""
    return f"the gradient of {broken[0]}{more} is not finite, while the loss is {loss / math.log(2):.4g} bits"


def _non_finite(run: Run, session: Session, what: str, validation: bool = False) -> NonFiniteError:
    """The error, with a checkpoint from which smaller steps can help.

    A checkpoint of the very weights that gave a NaN is no use: the same step would fail in the same way.
    """
    config = session.config
    failed = session.step if validation else session.step + 1
    steps = [s for s in checkpoints.steps_in(run.checkpoints) if s < session.step]
    if not steps:
        return NonFiniteError(
            f"{what} at step {failed}, with the weights that the run began with: start another run, with "
            f"another "
            f"--seed, a smaller --window, or a cell other than {config.cell}"
        )
    name = checkpoints.step_name(steps[-1])
    clip = config.clip_norm / 2 or 1.0
    command = run.resume_command(f"--checkpoint {name} --lr {config.lr / 2:g} --clip-norm {clip:g}")
    return NonFiniteError(
        f"{what} at step {failed}; the last good checkpoint is {run.checkpoints / name}; "
        f"continue from it with smaller steps: {command}"
    )
