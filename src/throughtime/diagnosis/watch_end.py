"""The end of a watched training: the summary of its history, and the diagnosis of its last measured step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from throughtime.diagnosis.assemble import from_capture
from throughtime.diagnosis.following import WORK
from throughtime.diagnosis.history import Record, Seen
from throughtime.diagnosis.observe import chosen, sampled
from throughtime.diagnosis.result import Diagnosis
from throughtime.flow import Capture, NormHistory, UpdateSizes

OVER = 1.05  # a budget that is exceeded by less than a twentieth is not spoken of

if TYPE_CHECKING:
    from throughtime.diagnosis.watch_result import Watched


def closing(
    found: Capture,
    model: nn.Module | None,
    history: Sequence[Record],
    updates: UpdateSizes | None,
    notes: Sequence[str],
    **options: Any,
) -> Diagnosis:
    """The diagnosis of a captured step, with what the history knows."""
    stacks, _ = chosen(found)
    some, parts = [], []
    for stack in stacks:
        captured, of = sampled(stack, 0, WORK)
        some += captured
        parts += [] if of is None else [f"{stack[0].name}: measured on {of}, for the whole batch would take long"]
    norms = [r.grad_norm for r in history if r.grad_norm is not None]
    given: dict[str, Any] = {
        "model": model,
        "updates": updates,
        "norms": NormHistory(tuple(norms)) if norms else None,
        "notes": [*parts, *notes],
    }
    return from_capture(found.only(some), **{**given, **options})


def summary(w: Watched) -> str:
    """A watch in a few lines: what it cost, and how loss, norms and horizons went from the first record to the last."""
    share = w.budget.share
    lines = [
        f"Watch of {w.name}: {w.steps} training step{'' if w.steps == 1 else 's'}, {len(w.history)} measured, "
        f"{_percent(w.cost)} of training time (budget {_percent(share)})"
    ]
    if w.history:
        first, last = w.history[0], w.history[-1]
        lines.append(f"  step           {_pair(first.step, last.step, '{}')}")
        if first.loss is not None and last.loss is not None:
            lines.append(f"  loss           {_pair(first.loss, last.loss, '{:.4g}')}")
        if first.grad_norm is not None and last.grad_norm is not None:
            lines.append(f"  gradient norm  {_pair(first.grad_norm, last.grad_norm, '{:.3g}')}")
        earlier = {s.place: s for s in reversed(first.recurrences)}
        for seen in last.recurrences:
            lines += _recurrence(earlier.get(seen.place, seen), seen)
    return "\n".join([*lines, *(f"  note: {n}" for n in w.notes)])


def over_budget(w: Watched) -> str:
    """Why it took more than its share, in a sentence; empty where it did not, or where there was none to keep."""
    budget = w.budget
    if not budget.limited or budget.watching <= OVER * budget.share * budget.training or not w.history:
        return ""
    told = (
        f"watching took {_seconds(budget.watching)} of {_seconds(budget.training)} of training, more than its budget "
        f"of {_percent(budget.share)}"
    )
    if len(w.history) > 1:
        return f"{told}: a measurement took longer than those before it"
    enough = _seconds(budget.watching / budget.share)
    return f"{told}: one measurement is made however short the training is; one of {enough} would have room for it"


def _seconds(s: float) -> str:
    return f"{s:.2g} s" if s < 10 else f"{s:.0f} s"


def _recurrence(first: Seen, last: Seen) -> list[str]:
    lines = [f"  {last.place} ({last.cell}, {last.steps} steps)" if last.cell else f"  {last.place}"]
    if last.horizon is None:
        return [*lines, f"    {last.problem}"]
    before = "not measured" if first.horizon is None else str(first.horizon)
    lines.append(f"    gradient horizon {before if before == str(last.horizon) else f'{before} -> {last.horizon}'}")
    if first.half_life is not None and last.half_life is not None:
        lines.append(f"    half-life        {_pair(first.half_life, last.half_life, '{:.1f}')} steps")
    if last.estimated:
        lines.append(f"    estimated from {last.estimated}")
    return lines


def _pair(first: Any, last: Any, form: str) -> str:
    a, b = form.format(first), form.format(last)
    return a if a == b else f"{a} -> {b}"


def _percent(share: float) -> str:
    return "without end" if math.isinf(share) else f"{100 * share:.2g} %"
