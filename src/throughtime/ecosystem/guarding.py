"""A guard in a training loop that somebody else runs: opened, asked and closed by that loop's hooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from throughtime.cures.guard import Guard
from throughtime.cures.guard_report import Incident
from throughtime.cures.guard_step import Step
from throughtime.errors import ConfigError

_OURS = ("model", "optimizer", "scheduler", "scaler", "data")


class Guarding:
    """A `throughtime.Guard` whose steps are not a `with` block but two calls.

    options: of `throughtime.Guard`, all but model, optimizer, scheduler, scaler and data, which the loop knows itself.
    Raises ConfigError for other ones, at once and not only when training begins.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        if ours := [name for name in _OURS if name in options]:
            raise ConfigError(f"{ours[0]} is known from the trainer; leave it out")
        weight = nn.Parameter(torch.zeros(1))
        try:
            Guard(_One(weight), SGD([weight]), **options)
        except TypeError as error:
            raise ConfigError(f"{error}; the options are those of throughtime.Guard") from None
        self.options = options
        self.guard: Guard | None = None
        self._step: Step | None = None
        self._saved: dict[str, Any] | None = None

    @property
    def incidents(self) -> list[Incident]:
        """What happened so far, oldest first."""
        if self.guard is not None:
            return self.guard.incidents
        return [Incident.from_dict(found) for found in (self._saved or {}).get("incidents", ())]

    def start(
        self, model: nn.Module, optimizers: Sequence[Optimizer], schedulers: Sequence[Any] = (), scaler: Any = None
    ) -> None:
        """Training begins, or goes on from what `load_state_dict` was given."""
        self.leave()
        guard = Guard(model, list(optimizers), scheduler=list(schedulers), scaler=scaler, **self.options)
        if self._saved is not None:
            guard.load_state_dict(self._saved)
            self._saved = None
        self.guard = guard

    def begin(self) -> None:
        """A step begins; one that was left open is closed unseen."""
        self.leave()
        if self.guard is not None:
            self._step = self.guard.step().__enter__()

    def check(self, loss: Any) -> None:
        """A loss of the step."""
        if self._step is not None and isinstance(loss, Tensor) and loss.numel() == 1:
            self._step.check(loss)

    def end(self) -> Incident | None:
        """The step is over: what is bad is acted upon. Raises GuardStopped where the guard is at its end."""
        step, self._step = self._step, None
        if step is None:
            return None
        step.__exit__(None, None, None)
        return step.incident

    def leave(self, error: BaseException | None = None) -> None:
        """The step came to no end: everything of it is taken off, and nothing concluded from it."""
        step, self._step = self._step, None
        if step is not None:
            error = error or RuntimeError("the step was left")
            step.__exit__(type(error), error, error.__traceback__)

    def state_dict(self) -> dict[str, Any]:
        """What the guard has learnt, as plain numbers, lists and dicts; empty before training began."""
        return self.guard.state_dict() if self.guard is not None else dict(self._saved or {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there when training begins."""
        self._saved, self.guard = (dict(state) or None), None


def is_guarded(optimizer: Any) -> bool:
    """Whether a guard will look at the gradient when this optimiser, or the one inside this wrapper, takes its step."""
    inner = getattr(optimizer, "optimizer", optimizer)
    return any(isinstance(getattr(h, "__self__", None), Step) for h in inner._optimizer_step_pre_hooks.values())


class _One(nn.Module):
    """A model of one weight, to try options on; torch's own layers would draw random numbers."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight
