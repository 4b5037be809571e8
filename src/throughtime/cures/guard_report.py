"""What the guard tells: one incident, with its place, its cause and what was done; and what guarding costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from throughtime.cures.cliff import Cliff
from throughtime.cures.flight import FlightRecord
from throughtime.cures.guard_rule import BACK, SKIP
from throughtime.plain import Plain


@dataclass(frozen=True)
class Incident(Plain):
    """One bad step. iteration: as the guard counts them. fault: what was wrong. action: "skip", "back" or "stop".

    record: where and why, by the flight recorder; None without it. back_to: the iteration at the start of whose step
    the weights are now. factor, clip: what the learning rate is multiplied by, and the gradient clipped at, from then
    on. cliff: the loss along the last update, where the loss was given as a function.
    """

    iteration: int
    fault: str
    action: str
    record: FlightRecord | None = None
    back_to: int | None = None
    factor: float = 1.0
    clip: float | None = None
    cliff: Cliff | None = None

    @property
    def done(self) -> str:
        """What was done about it, in a few words."""
        if self.action == SKIP:
            return "skipped the step"
        back = "" if self.back_to is None else f"went back to the start of iteration {self.back_to}"
        if self.action != BACK:
            return f"stopped{'; ' + back if back else ''}"
        clip = "" if self.clip is None else f", gradient clipped at {self.clip:.4g}"
        return f"{back}; from now on learning rate x {self.factor:g}{clip}"

    def __str__(self) -> str:
        lines = [f"iteration {self.iteration}: {self.fault}; {self.done}"]
        lines += [str(self.record)] if self.record is not None else []
        return "\n".join([*lines, *([str(self.cliff)] if self.cliff is not None else [])])


@dataclass(frozen=True)
class GuardCost(Plain):
    """What guarding cost so far. Seconds: inside the guarded steps in all (total), in the guard's checks and hooks,
    in its snapshots, and in what it did about incidents. On CUDA the checks wait for the GPU, and that time is in them.

    steps, snapshots: how many. every: the number of steps from one snapshot to the next.
    """

    steps: int = 0
    total: float = 0.0
    checks: float = 0.0
    copies: float = 0.0
    incidents: float = 0.0
    snapshots: int = 0
    every: int = 0

    @property
    def share(self) -> float:
        """The part of the time that went into checks and snapshots, from 0 to 1."""
        return (self.checks + self.copies) / self.total if self.total else 0.0

    def __str__(self) -> str:
        each = 1e3 / max(self.steps, 1)
        return (
            f"Guard: {self.share:.1%} of {self.total:.3g} s in {self.steps} steps: checks {self.checks * each:.3g} ms "
            f"a step, {self.snapshots} snapshots of {1e3 * self.copies / max(self.snapshots, 1):.3g} ms, one every "
            f"{self.every} steps"
        )


def stopped(last: Incident, tried: Sequence[Incident]) -> str:
    """The message of the stop: what was wrong and where, what was tried before, and how the model is left."""
    record = last.record
    place = "" if record is None else f" ({record.cause}{': ' + record.place if record.place else ''})"
    before = "; ".join(f"at iteration {i.iteration} it {i.done}" for i in tried)
    before = before or "nothing, there was no good state to go back to"
    back = (
        f"the model is back at the start of iteration {last.back_to}, its last good state"
        if last.back_to is not None
        else "the weights are as they were"
    )
    return f"stopped at iteration {last.iteration}: {last.fault}{place}. Tried: {before}. Now {back}"
