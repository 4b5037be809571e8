"""The training loop: one step after the other, with the guard, the watch, validations and checkpoints, to its end."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from throughtime.cures.guard_checks import Fault
from throughtime.train.checkpoint import Best
from throughtime.train.data.prepared import Prepared
from throughtime.train.guarding import OnIncident, RunGuard
from throughtime.train.measures import validate
from throughtime.train.rundir import Run
from throughtime.train.runlog import RunLog, StepRecord
from throughtime.train.session import Session
from throughtime.train.signals import StopSignals
from throughtime.train.unguarded import Unguarded
from throughtime.train.updates import Update, apply, gradients
from throughtime.train.watching import RunWatch

OnStart = Callable[[Path, int], None]
OnStep = Callable[[StepRecord], None]


class TrainingStopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM stopped a run after its step was saved; the message says how to go on."""

    def __init__(self, message: str, received: signal.Signals) -> None:
        super().__init__(message)
        self.received = received


@dataclass(frozen=True)
class Callbacks:
    """What is called as a run goes on: at its start, at each step, at each thing that the guard did."""

    on_start: OnStart | None = None
    on_step: OnStep | None = None
    on_incident: OnIncident | None = None


class Loop:
    """Trains a session on its data until its last step, its patience or a signal ends it.

    saved: what `Session.restore` gave, where the run is continued. All that is written goes through `_save`, the log
    and the files of the guard and the watch, each of which is cut to the step that the session is at.
    """

    def __init__(
        self, run: Run, data: Prepared, session: Session, saved: Mapping[str, Any] | None, callbacks: Callbacks
    ) -> None:
        config = session.config
        self.run, self.data, self.session, self.callbacks = run, data, session, callbacks
        self.guard: RunGuard | Unguarded = Unguarded(run, session)
        with session.group.together():
            if config.guard:
                self.guard = RunGuard(run, session, (saved or {}).get("guard"), callbacks.on_incident)
            self.watch = RunWatch(session, config.watch_budget, run.watched)
        self.log = self._open_log()
        self.saved_at, self.enough = session.step, False
        self.stopped: signal.Signals | None = None

    def run_to_the_end(self) -> None:
        """All steps. Raises `TrainingStopped` after a signal, `NonFiniteError` for numbers that could not be helped."""
        session, config = self.session, self.session.config
        try:
            with StopSignals() as stop:
                session.group.attempt(self._begin)
                self._settle(stop)
                while session.step < config.steps and not self.stopped and not self.enough:
                    self._step()
                    self._settle(stop)
                if self.stopped and self.saved_at < session.step:
                    self._save(regular=False)
                    self._settle(stop)
                self.watch.stop(measure=not self.stopped)
            if self.stopped and session.step < config.steps and not self.enough:
                message = f"stopped at step {session.step} and saved; continue with: {self.run.resume_command()}"
                raise TrainingStopped(message, self.stopped)
        finally:
            self.watch.stop(measure=False)
            self.guard.close()
            self.log.close()

    def _open_log(self) -> RunLog:
        """The log; of several processes the first has the file."""
        group, path, step = self.session.group, self.run.log, self.session.step
        with group.together():
            log = RunLog(path, step) if group.first else None
        records = group.from_first(lambda: log.records if log else [])
        return log or RunLog(path, step, records)

    def _begin(self) -> None:
        self.guard.start()
        self.watch.start()
        if self.callbacks.on_start:
            self.callbacks.on_start(self.run.path, self.session.step)

    def _settle(self, stop: StopSignals) -> None:
        """A signal to one process stops all, after the same step; what one could not write ends all."""
        received = self.session.group.settle(int(stop.received or 0))
        self.stopped = signal.Signals(received) if received else None

    def _step(self) -> None:
        """One update, its record, and its checkpoint; or what the guard does instead."""
        session, config, group = self.session, self.session.config, self.session.group
        began = time.perf_counter()
        self.watch.before_step(self.data.train)
        update, fault = self._update()
        seconds = time.perf_counter() - began
        valid, better, last = None, False, session.step == config.steps
        if fault is None and self.data.valid and (session.step % config.valid_every == 0 or last):
            valid = validate(session.model, self.data.valid, config.valid_windows, group.sum)
            fault = self.guard.judge_validation(valid)
        if fault is not None:
            self._act(fault, update)
            return
        if valid is not None and (better := session.best.loss is None or valid < session.best.loss):
            session.best = Best(valid, session.step)
        record = StepRecord(session.step, update.loss, update.norm, seconds, valid)
        group.attempt(self.log.append, record)
        self.enough = valid is not None and self._out_of_patience()
        regular = better or last or self.enough or session.step % config.checkpoint_every == 0
        if regular and (fault := self.guard.judge_optimiser()) is not None:
            self._act(fault, update)
            return
        if regular:
            self._save(regular)
        if self.callbacks.on_step:
            group.attempt(self.callbacks.on_step, record)

    def _update(self) -> tuple[Update, Fault | None]:
        """Change the weights, if nothing speaks against it; what does is given back."""
        with self.guard.listening(), self.watch.around_step():
            update = gradients(self.session, self.data.train)
        fault = self.guard.judge(update)
        if fault is None:
            apply(self.session, update, self.guard.factor, self.guard.clip)
            fault = self.guard.judge_weights(update)
        return update, fault

    def _act(self, fault: Fault, update: Update) -> None:
        """Let the guard leave the update out or go back; then all that is written goes back too."""
        with self.watch.deaf():
            found = self.guard.act(fault, update)
        if found.back_to is not None:
            self.session.group.attempt(self.log.cut, self.session.step)
            self.session.group.attempt(self.watch.go_back)
            self.saved_at, self.enough = self.session.step, False

    def _save(self, regular: bool) -> None:
        """Write a checkpoint, nothing of which is ahead of what it stands on.

        regular: whether the undisturbed run saves here too, so that the guard may go back to it.
        """
        self.session.group.attempt(self.log.sync)
        self.session.group.attempt(self.guard.sync)
        if regular:
            self.guard.grounded(self.session.step)
        self.session.save(self.run.checkpoints, {"guard": self.guard.state_dict()}, self.guard.grounds_now())
        self.saved_at = self.session.step

    def _out_of_patience(self) -> bool:
        """Whether the last `patience` validations were all no better than the best."""
        patience, best = self.session.config.patience, self.session.best
        if not patience:
            return False
        return sum(r.valid is not None and r.step > best.step for r in self.log.records[best.step :]) >= patience
