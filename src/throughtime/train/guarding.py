"""The guard of a run: the checks and the rule of tt.Guard, with the run's own checkpoints to go back to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from throughtime.cures.guard import Guard, log
from throughtime.cures.guard_checks import (
    GRADIENT,
    LOSS,
    OPTIMIZER,
    PARAMETER,
    VALIDATION,
    Fault,
    tensors_of,
    total_norm,
)
from throughtime.cures.guard_log import IncidentLog
from throughtime.cures.guard_processes import agreed
from throughtime.cures.guard_report import Incident
from throughtime.cures.guard_rule import BACK, SKIP
from throughtime.cures.guard_step import Step
from throughtime.errors import ConfigError, GuardStopped
from throughtime.files import writing
from throughtime.flow.tree import leaves
from throughtime.train import checkpoint as checkpoints
from throughtime.train.compiled import as_written
from throughtime.train.failing import what_to_do
from throughtime.train.rundir import Run
from throughtime.train.session import Session
from throughtime.train.updates import Update

OnIncident = Callable[[Incident], None]
GROUNDS = 2
"""Checkpoints that the guard may go back to."""
REMEMBERED = 1000
"""Places in the data that gave bad steps."""


class RunGuard(Guard):
    """Guards the steps of a run as `throughtime.cures.Guard` guards those of a loop, with two differences.

    It goes back to a checkpoint of the run, not to a copy in memory: that costs neither memory nor time while all is
    well, and a run that is killed and resumed goes back to the very place that the undisturbed one goes back to. And
    its iterations are the run's steps: an update that was left out counts for none, so that the log has one line a
    step and the schedule goes on as it was written; only the data go on.

    Looked at are the loss; the gradient, which must be finite, and after clipping by --clip-norm must not have
    exploded; the weights after the update; the validation loss; what the optimiser keeps, before each checkpoint.
    Windows that fail once more after the run has gone back, while the step before was good, are left out.
    """

    def __init__(self, run: Run, session: Session, saved: dict[str, Any] | None, tell: OnIncident | None) -> None:
        super().__init__(session.model, session.optimiser)
        self.run, self.session, self.tell = run, session, tell
        self.grounds = [session.step]  # steps of the checkpoints that may be gone back to, saved at set times only
        self._left: set[int] = set()  # those of them that were gone back to
        self._failed: list[int] = []  # positions in the data of steps that were bad
        self._window, self._just_left_out = 0, False
        self._earlier = 0  # incidents before this process
        self._state: Any = None
        self._file: IncidentLog | None = None
        if saved:
            self.load_state_dict(saved)
        changed = [name for c in run.changes if c["step"] == session.step for name in c]
        self.factor = 1.0 if "lr" in changed else self.factor  # what the user has just said counts
        self.clip = None if "clip_norm" in changed else self.clip

    @property
    def count(self) -> int:
        """Incidents of the run so far."""
        return self._earlier + len(self.incidents)

    def start(self) -> None:
        """Makes the file of the incidents what it was at this step; it is there from the first incident on."""
        if not self.session.group.first:
            return
        if self.count:
            self._file = IncidentLog(self.run.incidents, keep=self.count)
        else:  # of a way that the run has left
            with writing(self.run.incidents):
                self.run.incidents.unlink(missing_ok=True)

    # --- a step -------------------------------------------------------------------------------------------------------

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Around the gradients of a step: keeps what is needed to run it again."""
        assert self.recorder is not None
        self.iteration, self._window, self._state = self.session.step + 1, self.session.position, self.session.state
        self.recorder.clear()
        self.recorder.open()
        try:
            yield
        finally:
            self.recorder.close()

    def judge(self, update: Update) -> Fault | None:
        """What is wrong with an update before it is applied, if anything."""
        fault = self.limits[LOSS].fault(update.loss) or self.limits[GRADIENT].fault(self._clipped(update.norm))
        return agreed(fault, self.model)

    def judge_weights(self, update: Update) -> Fault | None:
        """What is wrong with the weights after the update; where all is well the step counts as good."""
        norm = total_norm(tensors_of(self.model))
        fault = agreed(self.limits[PARAMETER].fault(norm), self.model)
        if fault is None:
            values = {LOSS: update.loss, GRADIENT: self._clipped(update.norm), PARAMETER: norm}
            for what, value in values.items():
                self.limits[what].accept(value)
            self.good()
            self._just_left_out = False
        return fault

    def judge_validation(self, loss: float) -> Fault | None:
        """What is wrong with a validation loss, after the update."""
        return agreed(None if math.isfinite(loss) else Fault(VALIDATION, loss), self.model)

    def judge_optimiser(self) -> Fault | None:
        """What is wrong with what the optimiser keeps; asked before a checkpoint."""
        kept = [v for v in leaves(list(self.session.optimiser.state.values())) if v.is_floating_point()]
        norm = total_norm(kept)
        return agreed(None if math.isfinite(norm) else Fault(OPTIMIZER, norm), self.model)

    def act(self, fault: Fault, update: Update) -> Incident:
        """Leaves the update out, or takes the run back to a checkpoint; raises GuardStopped when that is at its end."""
        tried = _Tried(self, update)
        try:
            with as_written(self.model):
                found = self.incident(tried, fault)
        except GuardStopped:
            raise self._at_the_end() from None
        self._just_left_out = found.action == SKIP
        self._failed = [*(w for w in self._failed if w != self._window), self._window][-REMEMBERED:]
        return found

    def knows_as_bad(self, step: Step) -> bool:
        """Whether these windows failed before, with other weights, and the step before them was none that failed."""
        return self._window in self._failed and not self._just_left_out

    def undo(self, update: Update) -> None:
        """Puts back what was carried into a step that is left out: nothing, where it was bad or of other sequences."""
        good = all(bool(v.isfinite().all()) for v in leaves(self._state))
        self.session.state = self._state if update.carried and good else None

    # --- where it goes back to ----------------------------------------------------------------------------------------

    def grounded(self, step: int) -> None:
        """A checkpoint was saved that may be gone back to."""
        self.grounds = [*(s for s in self.grounds if s < step), step][-GROUNDS:]
        self._left = (self._left & set(self.grounds)) - {step}

    def grounds_now(self) -> list[int]:
        """The checkpoints that must not be removed."""
        return self.grounds

    @property
    def can_go_back(self) -> bool:
        """Whether there is a checkpoint of weights that a step went well from."""
        return bool(self._good_grounds())

    def go_back(self) -> int:
        """Puts the run back to its last good checkpoint, the second time to the one before; gives the next step."""
        places = self._good_grounds()
        if places[-1] in self._left and len(places) > 1:
            places.pop()
        step = places[-1]
        group, directory = self.session.group, self.run.checkpoints
        self.session.restore(directory / checkpoints.step_name(step))
        if group.first:
            group.attempt(checkpoints.remove_after, directory, step)
        self.grounds = places
        self._left = {*self._left, step} & set(places)
        return step + 1

    def _good_grounds(self) -> list[int]:
        there = self.session.group.from_first(lambda: checkpoints.steps_in(self.run.checkpoints))
        return [s for s in self.grounds if s < self.session.step and s in there]

    # --- what is kept and told ----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What the guard has learnt, for the checkpoint: numbers only."""
        limits = {n: {"largest": v.largest, "seen": v.seen} for n, v in self.limits.items()}
        return {
            "rule": self.rule.state_dict(), "limits": limits, "factor": self.factor, "clip": self.clip,
            "incidents": self.count, "grounds": list(self.grounds), "left": sorted(self._left),
            "failed": list(self._failed), "just_left_out": self._just_left_out,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave; raises CheckpointError for anything else."""
        try:
            self._earlier = int(state["incidents"])
            self.grounds, self._left = [int(s) for s in state["grounds"]], {int(s) for s in state["left"]}
            self._failed, self._just_left_out = [int(w) for w in state["failed"]], bool(state["just_left_out"])
            super().load_state_dict({**state, "iteration": 0, "every": self.every, "incidents": []})
        except (ConfigError, KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            place = self.run.checkpoints / checkpoints.step_name(self.session.step)
            raise checkpoints.bad(place, f"does not fit the run: {checkpoints.RESUME}: the guard: {error!r}") from None

    def sync(self) -> None:
        """Flushes the incidents to disk."""
        if self._file is not None:
            self._file.sync()

    def close(self) -> None:
        """Closes the file of the incidents."""
        if self._file is not None:
            self._file.close()

    def _tell(self, found: Incident) -> None:
        self.incidents.append(found)
        if self.session.group.first:
            self.session.group.attempt(self._say, found)

    def _say(self, found: Incident) -> None:
        if self._file is None:
            self._file = IncidentLog(self.run.incidents)
        self._file(found)
        if self.tell is None:
            log.warning("%s", sentence(found))
        else:
            self.tell(found)

    def _at_the_end(self) -> GuardStopped:
        last = self.incidents[-1]
        good = None if last.back_to is None else last.back_to - 1
        end = what_to_do(self.run, self.session, good, self.factor)
        tried = counted(self.incidents[:-1])
        told = f", after all that the guard could do ({tried})" if tried else ""
        return GuardStopped(f"{_what(last)}{told}{', ' if good is None else '; '}{end}")

    def _clipped(self, norm: float) -> float:
        bound = self.session.config.clip_norm
        return min(norm, bound) if bound and math.isfinite(norm) else norm


class _Tried(Step):
    """An update that is bad: what the flight recorder reads, and how it is left out."""

    guard: RunGuard

    def __init__(self, guard: RunGuard, update: Update) -> None:
        super().__init__(guard)
        self.update = update
        self.losses, self.norms = [update.loss], [update.norm]
        named: dict[str, Tensor] = {n: p.grad for n, p in guard.model.named_parameters() if p.grad is not None}
        self.gradients = named

    def undo(self) -> None:
        self.guard.undo(self.update)


def sentence(found: Incident) -> str:
    """An incident of a run in one line: the step, what was wrong and where, and what was done."""
    if found.action == SKIP:
        done = "that update is left out"
    elif found.back_to is None:
        done = "stopped"
    else:
        done = f"back to step {found.back_to - 1}"
        done += f", from now on learning rate x {found.factor:g}" if found.action == BACK else ", stopped"
        done += f" and gradient clipped at {found.clip:.4g}" if found.clip is not None else ""
    return f"{_what(found)}; {done}"


def _what(found: Incident) -> str:
    record = found.record
    place = "" if record is None else f" ({record.cause}{': ' + record.place if record.place else ''})"
    return f"{found.fault} at step {found.iteration}{place}"


def counted(incidents: Sequence[Incident]) -> str:
    """How often a run left out an update, or went back."""
    skipped = sum(i.action == SKIP for i in incidents)
    back = sum(i.action == BACK for i in incidents)
    told = [f"{skipped} update{'s' * (skipped != 1)} left out"] if skipped else []
    told += [f"{back} time{'s' * (back != 1)} gone back"] if back else []
    return ", ".join(told)
