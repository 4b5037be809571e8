"""The rule by which the guard acts on a bad step: skip it, go back and take shorter steps, or stop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from throughtime.errors import ConfigError

SKIP, BACK, STOP = "skip", "back", "stop"


@dataclass
class Rule:
    """Whether to skip a bad step, to go back, or to stop.

    1. A bad step is skipped, its batch with it, where the weights are good and no other step was bad within the last
       `calm` good ones. A step whose batch itself is bad (NaN in the input) is always skipped. Weights are bad if they
       hold NaN or infinity or exploded, or if the loss along the last update shows that it was too long.
    2. Otherwise training goes back to the last good state, the second time in a row to the one before it, and the
       learning rate is from then on multiplied by `lower`, once more each time; where it was the gradient that
       exploded, it is from then on clipped at the largest norm of the good steps, at half of that the next time.
    3. It stops when it would go back more than `tries` times without `calm` good steps in a row between, or when
       more than `tries` batches in a row are bad.

    tries: how often. lower: a factor in (0, 1). calm: a number of steps.
    """

    tries: int = 5
    lower: float = 0.5
    calm: int = 100
    backs: int = field(default=0, init=False)  # times gone back since the last calm
    row: int = field(default=0, init=False)  # bad steps in a row
    quiet: int | None = field(default=None, init=False)  # good steps since the last bad one; None: there was none

    def __post_init__(self) -> None:
        if isinstance(self.tries, bool) or not isinstance(self.tries, int) or self.tries < 0:
            raise ConfigError(f"tries must be a whole number, how often to go back before stopping; came {self.tries}")
        if not 0 < self.lower < 1:
            raise ConfigError(
                f"lower must lie between 0 and 1, what the learning rate is multiplied by; came {self.lower}"
            )
        if isinstance(self.calm, bool) or not isinstance(self.calm, int) or self.calm < 1:
            raise ConfigError(f"calm must be a whole number of good steps, at least 1; came {self.calm}")

    def good(self) -> None:
        """A step was good."""
        self.row = 0
        if self.quiet is not None:
            self.quiet += 1
            if self.quiet >= self.calm:
                self.quiet, self.backs = None, 0

    def decide(self, *, weights_good: bool, bad_input: bool) -> str:
        """What to do about a bad step: "skip", "back" or "stop"; nothing is remembered."""
        if weights_good and bad_input:
            return SKIP if self.row < self.tries else STOP
        if weights_good and self.quiet is None:
            return SKIP
        return BACK if self.backs < self.tries else STOP

    def bad(self, action: str) -> None:
        """A step was bad, and this was done about it."""
        self.row, self.quiet = self.row + 1, 0
        self.backs += action == BACK

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, for resuming."""
        return {"backs": self.backs, "row": self.row, "quiet": self.quiet}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        if not isinstance(state["quiet"], int | None):
            raise TypeError(f"quiet {state['quiet']!r}")
        self.backs, self.row, self.quiet = int(state["backs"]), int(state["row"]), state["quiet"]
