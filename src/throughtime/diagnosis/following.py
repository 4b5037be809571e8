"""Follows the gradient of captured recurrences back: in full, or from some loss steps where that would take long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from throughtime.errors import NoFlowError
from throughtime.flow import Captured, GradientFlow, Recurrence
from throughtime.flow.capture_runs import LayerRun, StepRun
from throughtime.flow.entering import Entering, loss_steps
from throughtime.flow.jacobian import first_samples
from throughtime.flow.passed import Outside, PassedStack

WORK = 5e9  # multiplications that the gradients of one recurrence may take: a second or two on one core
LEAST = 16  # loss steps that are followed at least, where there are so many


class Follower:
    """Follows what was captured; the layers of one stack are followed once, together."""

    def __init__(self, work: float = WORK):
        self.work = work
        self._stacks: dict[int, tuple[Any, list[list[dict[str, Tensor]]], str | None, int]] = {}

    def flow(self, captured: Captured) -> tuple[GradientFlow, str | None, int]:
        """The gradient flow of a recurrence, from what it was estimated (None: exact), and how many loss steps it has.

        Where some loss steps are followed only, the rows of the others are 0, and the profile is that of these losses.
        Raises what `Captured.flow` raises.
        """
        run = captured._run
        if isinstance(run, StepRun):
            return self._steps(run)
        if id(run) not in self._stacks:
            self._stacks[id(run)] = (run, *self._stack(run))
        _, maps, kind, n = self._stacks[id(run)]
        here = maps[captured.layer][int(captured.reverse)]
        return GradientFlow(here, run.calls[0].cell.name, captured.layer, captured.reverse), kind, n

    def _stack(self, run: LayerRun) -> tuple[list[list[dict[str, Tensor]]], str | None, int]:
        run.check()
        passed, outside = run.passed, run.outside
        T, B = passed.recurrences[0][0].x.shape[:2]
        steps = loss_steps(Entering([v for layer in outside for d in layer for v in d]), T)
        weights = sum(w.numel() for d in passed.recurrences for r in d for w in r.weights[:2] if w is not None)
        rows = self._drawn(steps, T / 2 * B * weights)
        samples = max(1, min(B, int(self.work / (len(rows) * T / 2 * weights))))
        if samples < B:
            passed, outside = first_sequences(passed, outside, samples)
            steps = loss_steps(Entering([v for layer in outside for d in layer for v in d]), T)
            rows = [t for t in rows if t in set(steps)]
            if not rows:
                raise NoFlowError(f"{run.title}: no gradient enters the first {samples} sequences of the batch")
        told = [f"{len(rows)} of {len(steps)} loss steps"] * (len(rows) < len(steps))
        told += [f"{samples} of {B} sequences"] * (samples < B)
        return passed.maps(outside, rows=rows), " and ".join(told) or None, len(steps)

    def _steps(self, run: StepRun) -> tuple[GradientFlow, str | None, int]:
        run.check()
        steps = loss_steps(run.entering, run.recurrence.output.shape[0])
        rows = self._drawn(steps, row_work(run))
        maps = run.recurrence.send_back(run.entering.at(rows))
        told = f"{len(rows)} of {len(steps)} loss steps" if len(rows) < len(steps) else None
        return GradientFlow(maps, run.recurrence.kind), told, len(steps)

    def _drawn(self, steps: Sequence[int], each: float) -> list[int]:
        """Loss steps to follow, at `each` multiplications a step: all, or some, spread evenly from the first to the
        last, which looks back farthest."""
        n = rows_within(self.work, len(steps), each)
        if n == len(steps):
            return list(steps)
        return sorted({steps[round(k * (len(steps) - 1) / max(1, n - 1))] for k in range(n)} | {steps[-1]})


def rows_within(work: float, steps: int, each: float) -> int:
    """How many of so many loss steps are followed with `work` multiplications, at `each` a step."""
    return max(min(LEAST, steps), min(steps, int(work / max(each, 1.0))))


def row_work(run: StepRun) -> float:
    """Multiplications, about, that one loss step takes to follow through a module of the user's own. A step is run
    again and differentiated by autograd; its cost is told by its parameters and its batch."""
    output = run.recurrence.output
    size = sum(v.numel() for v in run.recurrence.parameters.values())
    return output.shape[0] / 2 * size * max(1, output[0].numel() // 64)


def first_sequences(passed: PassedStack, outside: Outside, n: int) -> tuple[PassedStack, Outside]:
    """The same stack over the first n sequences of the batch."""
    stack: list[list[Recurrence]] = [[first_samples(r, n) for r in directions] for directions in passed.recurrences]
    masks = None if passed.masks is None else [None if m is None else m[:, :n] for m in passed.masks]
    some = [[[None if v is None else v[:, :n] for v in d] for d in layer] for layer in outside]
    return replace(passed, recurrences=stack, masks=masks), some
