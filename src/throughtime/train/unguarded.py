"""A run without its guard: the first number that is not finite ends it, before it reaches the weights."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from throughtime.cures.guard_checks import Fault
from throughtime.cures.guard_report import Incident
from throughtime.errors import NonFiniteError
from throughtime.train.failing import before, what_to_do
from throughtime.train.rundir import Run
from throughtime.train.session import Session
from throughtime.train.updates import Update, what_broke


class Unguarded:
    """What the loop asks where there is no guard; see `throughtime.train.guarding.RunGuard` for the same questions."""

    factor = 1.0
    clip: float | None = None
    incidents: tuple[Incident, ...] = ()

    def __init__(self, run: Run, session: Session) -> None:
        self.run, self.session = run, session

    def start(self) -> None:
        """Nothing."""

    def listening(self) -> AbstractContextManager[None]:
        """Around the gradients of a step; nothing is kept of it."""
        return nullcontext()

    def judge(self, update: Update) -> Fault | None:
        """Looks at an update before it is applied."""
        if not update.finite:
            self._stop(what_broke(self.session.model, update), self.session.step + 1)
        return None

    def judge_validation(self, loss: float) -> Fault | None:
        """Looks at a validation loss."""
        if not math.isfinite(loss):
            self._stop(f"the validation loss is {loss}", self.session.step)
        return None

    def judge_weights(self, update: Update) -> Fault | None:
        """Looks at the weights after the update."""
        return None

    def judge_optimiser(self) -> Fault | None:
        """Looks at what the optimiser keeps, before a checkpoint."""
        return None

    def act(self, fault: Fault, update: Update) -> Incident:
        """Never called: nothing is found."""
        raise NonFiniteError(str(fault))

    def grounded(self, step: int) -> None:
        """A checkpoint was saved that may be gone back to."""

    def grounds_now(self) -> list[int]:
        """The checkpoints that must not be removed."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def sync(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""

    def _stop(self, what: str, step: int) -> None:
        good = before(self.run, self.session)
        end = what_to_do(self.run, self.session, good)
        raise NonFiniteError(f"{what} at step {step}{', ' if good is None else '; '}{end}")
