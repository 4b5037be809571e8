"""A clipper in a training loop that somebody else runs: one for each optimiser, and what they learnt."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from throughtime.cures.clip import Clipper, ClipStep
from throughtime.errors import ConfigError


class Clipping:
    """The clipper that the user gave, and a copy of it for every further optimiser."""

    def __init__(self, clipper: Any) -> None:
        if not isinstance(clipper, Clipper):
            raise ConfigError(
                "expected a clipper of throughtime.cures, such as ZClip(), AutoClip(90) or ClipNorm(1.0); came "
                f"{type(clipper).__name__}"
            )
        self.clippers: list[Clipper] = [clipper]
        self._new = copy.deepcopy(clipper)
        self._saved: list[dict[str, Any]] = []

    def start(self, optimizers: int) -> None:
        """Training begins with so many optimisers, or goes on from what `load_state_dict` was given."""
        while len(self.clippers) < optimizers:
            self.clippers.append(copy.deepcopy(self._new))
        for clipper, state in zip(self.clippers, self._saved, strict=False):
            clipper.load_state_dict(state)
        self._saved = []

    def clip(self, optimizer: Optimizer, number: int = 0, *, leave: bool = False) -> ClipStep:
        """Clips the gradients of an optimiser's parameters.

        leave: whether NaN and infinity are left to somebody who looks at them later, a guard or a GradScaler.
        """
        clipper = self.clippers[number]
        parameters: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        rule = clipper.nonfinite
        if leave and rule == "raise":
            clipper.nonfinite = "leave"
        try:
            return clipper(parameters)
        finally:
            clipper.nonfinite = rule

    def state_dict(self) -> dict[str, Any]:
        """What the clippers have learnt."""
        return {"clippers": [clipper.state_dict() for clipper in self.clippers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there when training begins. Raises ConfigError for another clipper's state."""
        saved = list(state["clippers"])
        for kept in saved:
            copy.deepcopy(self._new).load_state_dict(kept)
        self._saved = saved


def as_numbers(step: ClipStep) -> dict[str, float]:
    """What a tracker is told of a clipped step."""
    return {"gradient_norm": step.before, "clip_threshold": step.threshold}
