"""From what was captured of a model, and what is known beside it, to a diagnosis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from torch import Tensor, nn

from throughtime.diagnosis.audit import audit
from throughtime.diagnosis.audit_clip import audit_clip
from throughtime.diagnosis.conclusion import conclude
from throughtime.diagnosis.dependence import Dependence
from throughtime.diagnosis.finding import Finding, ordered
from throughtime.diagnosis.following import WORK, Follower
from throughtime.diagnosis.horizons import Horizons
from throughtime.diagnosis.measured import Measured, measure
from throughtime.diagnosis.pictures import Draughtsman, norm_points
from throughtime.diagnosis.result import Diagnosis
from throughtime.diagnosis.symptoms import of_recurrence, of_updates
from throughtime.diagnosis.use import Use
from throughtime.flow import Capture, Captured, NormHistory, UpdateSizes
from throughtime.flow.capture_runs import StepRun


def from_capture(
    captured: Capture | Sequence[Capture],
    *,
    model: nn.Module | None = None,
    data: Dependence | None = None,
    together: Dependence | None = None,
    use: Use | None = None,
    updates: UpdateSizes | None = None,
    norms: NormHistory | None = None,
    clip: float | None = None,
    window: int | None = None,
    findings: Iterable[Finding] = (),
    notes: Iterable[str] = (),
    fraction: float = 0.01,
    work: float = WORK,
    among: str | None = None,
    added: Callable[[int, int], float | None] | None = None,
    pictures: bool = False,
    read: Tensor | None = None,
) -> Diagnosis:
    """A diagnosis from what was captured: one `Capture` that was left, or several of the same model.

    model:    audited as well, if given (`throughtime.diagnosis.audit`).
    data, together, use: how far back the targets depend on single inputs (`dependence`) and on all old ones together
              (`pooled_dependence`), and how far the model uses them, if that was measured.
    updates, norms, clip: the sizes of a step, the history of gradient norms and its clip threshold, if known.
    window:   T of truncated BPTT; None for the steps that were captured.
    findings, notes: more of them, from elsewhere.
    among:    the module whose gradient horizon counts; None for the one that reaches farthest.
    added:    from a near lag and a far one to what inputs between them add (`throughtime.diagnosis.added`).
    pictures: also a map, shares and eigenvalues for a page (`Pictures`): up to a second more for each stack of layers.
    read:     the symbols of the first sequence and, last, its last target, [T + 1] whole numbers, of a model of a text.
    work:     how many multiplications following the gradients of one recurrence may take, see `Follower`.

    Raises FlowError, in a sentence that says why, where nothing was captured.
    """
    captures = [captured] if isinstance(captured, Capture) else list(captured)
    for one in captures:
        one.check()
    groups, left_out = _same(captures)
    follower = Follower(work / len(captures))
    draughtsman = Draughtsman(text=read is not None) if pictures else None
    measured = tuple(measure(group, follower, draughtsman) for group in groups)
    far = _farthest([m for m in measured if among in (None, m.where.module)] or measured, fraction)
    known = [d.horizon() for d in (data, together) if d is not None]
    asked = max(known, key=lambda h: h.steps, default=None)
    horizons = Horizons(
        asked,
        None if far is None else far.horizon(fraction),
        None if use is None else use.horizon(),
        None if data is None or data.horizon() != asked else data.interval,
        None if far is None else far.interval,
        None if use is None else use.interval,
        far.steps if window is None and far is not None else window,
    )
    if added is not None and horizons.case in ("vanishes", "unclear", "unused"):
        short = horizons.use if horizons.case == "unused" else horizons.gradient
        assert short is not None and horizons.data is not None
        if short.steps >= 0:  # of a model that uses nothing all is lost
            horizons = replace(horizons, added=added(short.steps, horizons.data.steps))
    found = [f for m in measured for f in of_recurrence(m)]
    if far is not None:
        found.append(horizons.finding(far.where))
    found += [] if updates is None else of_updates(updates)
    found += [] if norms is None or clip is None else audit_clip(norms.norms, clip)
    found += findings
    if model is not None:
        found += _audited(model, horizons)
    found = ordered(found)
    case, verdict = conclude(
        found, horizons, far, next((n for m in measured for n in m.notes), None),
        changed=frozenset().union(*(one.changed for one in captures)),
    )  # fmt: skip
    more = dict.fromkeys([*(n for one in captures for n in one.notes), *left_out, *notes])
    return Diagnosis(
        case, verdict, tuple(found), measured, horizons, data, together, use, updates, fraction, tuple(more),
        None if norms is None else norm_points(norms.norms), clip, read,
    )  # fmt: skip


def _audited(model: nn.Module, horizons: Horizons) -> list[Finding]:
    """The audit. What is too short for the data by the weights alone is worth a warning only where the measured
    gradient is too short as well; where it is long enough, or nothing is asked for, no weights are too short."""
    lag = None if horizons.asked is None else horizons.asked.steps if horizons.case == "vanishes" else 1
    return [f for f in audit(model, lag) if f.code != "no-recurrence"]  # what ran as one was captured


def _same(captures: Sequence[Capture]) -> tuple[list[list[Captured]], list[str]]:
    """What was captured of each recurrence, in all calls and batches together; of those of different lengths the most
    frequent one, for maps over other steps cannot be put together. And what is left out, in words."""
    groups: dict[tuple[str, int, bool], list[Captured]] = {}
    for one in captures:
        for c in one.recurrences:
            groups.setdefault((c.name, c.layer, c.reverse), []).append(c)
    found, notes = [], []
    for (name, _, _), group in groups.items():
        most, n = Counter(_steps(c) for c in group).most_common(1)[0]
        if n < len(group):
            notes.append(f"{name} ran over other numbers of steps too: those of {most} were measured, {len(group) - n} "
                         "others not")  # fmt: skip
        found.append([c for c in group if _steps(c) == most])
    return found, notes


def _steps(c: Captured) -> int:
    run = c._run
    return len(run.recurrence.calls) if isinstance(run, StepRun) else sum(call.x.shape[0] for call in run.calls)


def _farthest(measured: Sequence[Measured], fraction: float) -> Measured | None:
    """The recurrence whose gradient reaches farthest: a forward one if there is one, for lags count the past."""
    there = [m for m in measured if m.profile is not None]
    forward = [m for m in there if not m.where.reverse] or there
    return max(forward, key=lambda m: (m.horizon(fraction) or (0,))[0], default=None)
