"""From a diagnosis, and what was prescribed for it, to a page."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from throughtime import cells
from throughtime.cures.prescribe_result import COLUMNS, Prescription, row
from throughtime.diagnosis import Diagnosis
from throughtime.diagnosis.measured import Measured
from throughtime.diagnosis.pictures import Pictures
from throughtime.errors import ReportError
from throughtime.flow import GateResult, GradientFlow
from throughtime.flow.bound import largest_slope
from throughtime.flow.gates import REGIMES
from throughtime.report.view import DependenceView, FindingView, GatesView, ModelView, Page, ReadingView, TableView
from throughtime.report.write import write

Symbols = Sequence[str] | Mapping[int, str] | Callable[[int], str]


def report(
    found: Diagnosis | Prescription,
    path: str | os.PathLike[str],
    *,
    title: str = "Diagnosis",
    maps: Mapping[str, GradientFlow] | None = None,
    settings: Mapping[str, object] | None = None,
    symbols: Symbols | None = None,
) -> Path:
    """Writes a diagnosis, or a prescription with the diagnosis it is from, as one HTML file that needs no network.

    maps: the exact (t, k) map of a recurrence, by its place as the diagnosis names it: a flow of `gradient_flow`.
    settings: a table at the end: what was measured, on what.
    symbols:  of a model of a text what its numbers stand for, for the text view: a string, a list, or a function.
    Raises ReportError if the file cannot be written.
    """
    return write(diagnosis_page(found, title=title, maps=maps, settings=settings, symbols=symbols), path)


def diagnosis_page(
    found: Diagnosis | Prescription,
    *,
    title: str = "Diagnosis",
    maps: Mapping[str, GradientFlow] | None = None,
    settings: Mapping[str, object] | None = None,
    symbols: Symbols | None = None,
) -> Page:
    """The page of a diagnosis: the verdict, the horizons, what was found, the profiles, gates and matrices.

    Arguments as of `report`.
    """
    prescription = found if isinstance(found, Prescription) else None
    d = prescription.diagnosis if prescription is not None else found
    assert isinstance(d, Diagnosis)
    data = d.horizons.data
    models = [_model(m, d, (maps or {}).get(str(m.where))) for m in d.measured] or [ModelView("the model", "")]
    if d.norms is not None:  # they are of the whole model
        models[0] = replace(models[0], norms=[(int(s), v) for s, v in d.norms.tolist()], clip=d.clip)
    for n, m in enumerate(d.measured):
        models[n] = replace(models[n], reading=None if symbols is None else _reading(m, d, symbols))
    return Page(
        title,
        d.verdict if prescription is None else f"{d.verdict} {prescription.verdict}",
        models,
        d.horizons.window or max([m.steps for m in d.measured], default=1) or 1,
        data_horizon=data if data is not None and data.steps >= 0 else None,
        dependence=_dependence(d),
        settings=settings or {},
        fraction=d.fraction,
        unit="step",
        asks="The task",
        findings=[FindingView(f.severity, str(f.where), f.what, f.means, f.do) for f in d.findings]
        + [FindingView("note", "", note, "") for note in d.notes],
        tables=[*([] if prescription is None else [_remedies(prescription)]), *_recurrences(d), *_updates(d)],
    )


def _model(m: Measured, d: Diagnosis, flow: GradientFlow | None) -> ModelView:
    use, p = d.horizons.use, m.pictures or Pictures()
    drawn = p.maps if flow is None else flow.maps  # in reverse, steps are counted as they are read, from the end
    farthest = m.profile is not None and m.horizon(d.fraction) == d.horizons.gradient
    horizon = m.horizon(d.fraction)
    return ModelView(
        str(m.where), m.cell,
        profile=m.profiles, maps={n: v.flip(0, 1) if m.where.reverse else v for n, v in drawn.items()},
        map_steps=(0, 1) if flow is not None else (0 if m.where.reverse else p.first, p.stride),
        horizon={} if horizon is None else {next(iter(m.profiles)): horizon},
        half_life={} if horizon is None else {next(iter(m.profiles)): m.half_life()},
        use=use if farthest and use is not None and use.steps >= 0 else None,
        gates=None if m.gates is None else _gates(m.gates), bound=_bound(m), shares=p.shares,
        eigenvalues={of: [(a, b) for a, b in v.tolist()] for of, v in p.eigenvalues.items()},
    )  # fmt: skip


def _reading(m: Measured, d: Diagnosis, symbols: Symbols) -> ReadingView | None:
    """The last steps of the first sequence, as text; None where the model is none of a text."""
    if d.read is None or m.pictures is None or m.pictures.last is None or m.where.reverse:
        return None
    here = m.pictures.last
    try:
        text = [str(symbols(n) if callable(symbols) else symbols[n]) for n in d.read[-len(here) - 1 :].tolist()]
    except (LookupError, TypeError) as error:
        raise ReportError(f"symbols must have a text for each number that the model read; {error!r}") from None
    return ReadingView(text, (), here)


def _bound(m: Measured) -> float | None:
    """sigma_1 of U times the largest slope of f, for a simple network; gates have no such bound (Pascanu 2013)."""
    slope = next((largest_slope(c) for c in map(cells.by_name, cells.NAMES) if c.name == m.cell), None)
    return None if slope is None or not m.matrices else m.matrices[0].sigma_1 * slope


def _gates(found: GateResult) -> GatesView:
    regimes = found.regimes[0] if found.regimes else None
    return GatesView(
        {g.name: g.histogram for g in found.gates},
        () if regimes is None else tuple(f"{name} {''.join(map(str, bits))}" for bits, name in REGIMES.items()),
        () if regimes is None else regimes.unit.tolist(),
    )


def _dependence(d: Diagnosis) -> DependenceView | None:
    if d.data is None or not d.data.lags:
        return None
    limits = d.data.limits or (d.data.threshold,) * len(d.data.lags)
    what = "dependence of the target on the input"
    return DependenceView(d.data.lags, d.data.size, limits, d.data.unit, what)


def _remedies(p: Prescription) -> TableView:
    outcomes = () if p.nothing is None else (p.nothing, *p.outcomes)
    rows = [(name, *map(_typeset, cells)) for name, *cells in (row(o, p.winner) for o in outcomes)]
    tried = f"{len(p.seeds)} seeds, {p.steps} steps each; the loss is that of batches held out."
    reasons = " ".join(f"{o.candidate.name}: {o.candidate.reason}." for o in p.outcomes if o.candidate.reason)
    return TableView("Remedies, before and after", COLUMNS, rows, f"{tried} {reasons}".strip(), p.code)


def _typeset(cell: str) -> str:
    """What the terminal's table says, with the signs that a page has; a factor and an arrow are not cut in two."""
    return cell.replace(" -> ", "\u00a0→ ").replace("x ", "×\u00a0")


def _recurrences(d: Diagnosis) -> list[TableView]:
    if not d.measured:
        return []
    rows = []
    for m in d.measured:
        radius = max((u.spectral_radius for u in m.matrices if u.spectral_radius is not None), default=None)
        lyapunov = None if m.lyapunov is None else float(m.lyapunov.exponents[0])
        sigma = max((u.sigma_1 for u in m.matrices), default=None)
        memory = ", ".join(f"{s.state} {_number(float(s.half_life.median()))}" for s in m.memories) or "—"
        how = m.broken or m.estimated or ("no gradient enters" if m.unreached else "exact")
        sizes = (_number(radius), _number(sigma), _number(lyapunov))
        rows.append((str(m.where), m.cell, str(m.steps), str(m.units), *sizes, memory, how))
    head = ("", "cell", "steps T", "units H", "spectral radius", "σ₁", "Lyapunov, nats a step",
            "memory's half-life, steps", "measured")  # fmt: skip
    caption = (
        "The largest over the gates of each recurrent matrix U. A Lyapunov exponent below 0 contracts: what was in the "
        "state fades by that many nats a step. The memory's half-life is the median over units, along the carousel."
    )
    return [TableView("The recurrences", head, rows, caption)]


def _updates(d: Diagnosis) -> list[TableView]:
    if d.updates is None or not d.updates.updates:
        return []
    rows = [(u.name, _number(u.weight), _number(u.step), _number(u.ratio), u.label) for u in d.updates.updates]
    caption = "The length of one optimiser step against the length of the weight: far below 1e-5 a parameter stalls."
    return [TableView("The next update", ("", "‖W‖", "‖step‖", "step / W", ""), rows, caption)]


def _number(v: float | None) -> str:
    if v is None:
        return "—"
    return f"{v:.3g}" if math.isfinite(v) else ("∞" if v > 0 else "NaN")
