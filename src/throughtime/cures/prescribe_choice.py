"""Chooses the candidates: each for a finding of the diagnosis, or for what went wrong in training; none by habit."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from throughtime import cells
from throughtime.cells import Cell
from throughtime.cures.advise import advise_clip
from throughtime.cures.init_gates import KEEPS
from throughtime.cures.prescribe_remedies import (
    Candidate,
    Chrono,
    Clip,
    GateBias,
    LearningRate,
    OmegaPenalty,
    Orthogonal,
    Remedy,
    SpectralRadius,
    SwapCell,
)
from throughtime.cures.prescribe_result import Outcome
from throughtime.cures.prescribe_trial import WORST
from throughtime.diagnosis.audit_recurrent import radius
from throughtime.diagnosis.finding import Finding, steps
from throughtime.diagnosis.parts import Part, parts
from throughtime.diagnosis.result import Diagnosis

HEALTHY_STEP = 1e-2  # of the weight: where a step that is too long is brought back to
STALLED_STEP = 1e-3
CURABLE = (
    "explodes", "gate-shut", "gate-stuck-open", "units-saturated", "dead-units", "memory-full", "update-too-long",
    "stalled", "stability", "recurrent-weights",
)  # fmt: skip


@dataclass(frozen=True)
class Chosen:
    """The candidates, and what was found that no candidate can cure, each as a sentence."""

    candidates: tuple[Candidate, ...]
    advice: tuple[str, ...]


def choose(model: nn.Module, diagnosis: Diagnosis, nothing: Outcome) -> Chosen:
    """The candidates that something speaks for: in the diagnosis, or in the trials without any change."""
    found = parts(model)
    reasons: dict[tuple[Remedy, ...], dict[str, None]] = {}
    for candidate in [
        *_for_training(diagnosis, nothing),
        *_for_gates(found, diagnosis),
        *_for_explosion(found, diagnosis, nothing),
        *_for_vanishing(found, diagnosis),
        *_for_units(found, diagnosis),
    ]:
        reasons.setdefault(candidate.remedies, {}).update(dict.fromkeys(candidate.reason.split("; ")))
    advice = tuple(f"{f.where}: {f.what}. {f.do}" for f in diagnosis.worries if f.do and not _curable(f))
    if diagnosis.case == "window":
        asks = diagnosis.horizons.asked
        advice = (f"train on windows of more than {asks.steps if asks else 0} steps, or carry the state on", *advice)
    return Chosen(tuple(Candidate(r, "; ".join(why)) for r, why in reasons.items()), advice)


def _curable(f: Finding) -> bool:
    return f.code in CURABLE or f.code.endswith("-bias") or f.code.startswith("horizons")


# --- training that does not hold, steps that are too long or too short ------------------------------------------------


def _for_training(diagnosis: Diagnosis, nothing: Outcome) -> Iterator[Candidate]:
    long = _all(diagnosis, "update-too-long")
    ill = _unsound(nothing)
    if ill or long:
        told = [ill] if ill else []
        factors = [0.1]
        if long:
            most = max(f.number or 0.0 for f in long)
            told.append(f"a step changes {long[0].where.parameter} by {most:.2g} of their size")
            # What brings such a step back to a hundredth of the weight, and what lies between, the gentlest first.
            back = _round(HEALTHY_STEP / most) if math.isfinite(most) else 1e-3
            between = [(0.01, 0.005), (_round(math.sqrt(0.01 * back)), 1e-4), (back, 0.05)]
            factors += [factor for factor, where in between if back < where]
        for factor in factors:
            yield Candidate((LearningRate(factor),), "; ".join(told))
    if ill and (threshold := _threshold(nothing)) is not None:
        at, why = threshold
        yield Candidate((Clip(at),), f"{ill}; {why}")
    still = _all(diagnosis, "stalled")
    if still and diagnosis.case not in ("vanishes", "explodes") and not ill:
        least = min(f.number or 0.0 for f in still)
        factor = _round(min(1e3, STALLED_STEP / least)) if least > 0 else 100.0
        why = f"a step changes {still[0].where.parameter} by {least:.1g} of their size only"
        yield Candidate((LearningRate(max(10.0, factor)),), why)


def unsound(nothing: Outcome) -> bool:
    """Whether training without any change does not hold: it breaks, its loss leaps up, or ends above its start."""
    return bool(_unsound(nothing))


def _unsound(nothing: Outcome) -> str:
    n = len(nothing.trials)
    if nothing.broken:
        return f"training broke in {nothing.broken} of {n} runs"
    worst = max((t.worst for t in nothing.sound), default=0.0)
    if worst > WORST:
        return f"the loss leapt to {worst:.2g} times its start"
    risen = sum(not t.held for t in nothing.sound)
    return f"the loss ended higher than it began in {risen} of {n} runs" if risen else ""


def _threshold(nothing: Outcome) -> tuple[float, str] | None:
    """Where to clip, by the norms of training without any change up to where it went wrong; and why there."""
    norms = [v for t in nothing.trials for v in _before_harm(t.losses, t.norms, t.start)]
    advice = advise_clip(norms) if norms else None
    if advice is None or advice.threshold is None or not advice.threshold > 0:
        return None
    median = statistics.median(advice.history.finite)
    if advice.spikes:
        return _round(advice.threshold), f"{len(advice.spikes)} gradient norms stand out above {advice.threshold:.3g}"
    return _round(median), f"no norm stands out; {median:.3g} is the median of the ordinary ones"


def _before_harm(losses: tuple[float, ...], norms: tuple[float, ...], start: float) -> tuple[float, ...]:
    end = next((n for n, v in enumerate(losses) if not v <= WORST * start), len(losses))
    return norms[: max(end, 1)]


# --- gates that are shut, or stuck open -------------------------------------------------------------------------------


def _for_gates(found: list[Part], diagnosis: Diagnosis) -> Iterator[Candidate]:
    lag = _lag(diagnosis)
    for f in diagnosis.worries:
        part = _part(found, f)
        if part is None or "bias_ih" not in part.parameters:
            continue
        keep = KEEPS[type(part.cell)][0] if type(part.cell) in KEEPS else None
        if f.code in ("gate-shut", "gate-stuck-open"):
            gate = f.what.split()[1]
            if gate != keep:
                yield Candidate((GateBias(0.0, gate, part.module),), f"{f.where}: {f.what}")
                continue
        elif not f.code.endswith("-bias"):
            continue
        if keep is not None:
            yield Candidate((GateBias(1.0, at=part.module),), f"{f.where}: {f.what}")
            yield from _long_memory(part, lag, f"{f.where}: {f.what}")


def _long_memory(part: Part, lag: int | None, reason: str) -> Iterator[Candidate]:
    if lag is not None and lag > 3:
        value = round(math.log(lag), 1)
        why = f"{reason}; a bias of ln {lag} = {value:g} keeps for {lag} steps"
        yield Candidate((GateBias(value, at=part.module),), why)
        yield Candidate((Chrono(lag + 1, part.module),), f"{reason}; memories of 2 to {lag + 1} steps cover {lag}")


# --- a gradient that explodes -----------------------------------------------------------------------------------------


def _for_explosion(found: list[Part], diagnosis: Diagnosis, nothing: Outcome) -> Iterator[Candidate]:
    for f in _all(diagnosis, "explodes"):
        why = f"{f.where}: {f.what}"
        norms = [v for t in nothing.trials for v in t.norms if math.isfinite(v)]
        if norms:
            yield Candidate((Clip(_round(statistics.median(norms))),), f"{why}; at the median of the norms")
        part = _part(found, f)
        if part is None or not _simple(part.cell):
            continue
        U = part.block("weight_hh", part.cell.recurrent_gates[0])
        if U is not None and (rho := radius(U)) > 1:
            reason = f"{why}; its U has spectral radius {rho:.2f}"
            yield Candidate((SpectralRadius(1.0, part.module),), reason)
            yield Candidate((Orthogonal(part.module),), reason)


# --- a gradient that vanishes before the dependency in the data -------------------------------------------------------


def _for_vanishing(found: list[Part], diagnosis: Diagnosis) -> Iterator[Candidate]:
    if diagnosis.case not in ("vanishes", "unknown", "unclear", "faulty") or not _falls_short(diagnosis):
        return
    lag = _lag(diagnosis)
    assert lag is not None
    reached = diagnosis.horizons.gradient
    what = (
        f"the data ask for {steps(lag)}"
        if diagnosis.horizons.asked is not None
        else f"what the data ask for is not known, the sequences have {lag + 1} steps"
    )
    reason = f"the gradient reaches {reached}, {what}"
    for part in _modules(found):
        if type(part.cell) in KEEPS and "bias_ih" in part.parameters:
            yield from _long_memory(part, lag, reason)
            continue
        if not _simple(part.cell):
            continue
        yield Candidate((Orthogonal(part.module),), f"{reason}; an orthogonal U neither shrinks nor stretches")
        if part.layer is None:
            yield Candidate(
                (OmegaPenalty(),), f"{reason}; the loop that steps {part.module or 'the cell'} holds its state, so "
                "the cell cannot be swapped",
            )  # fmt: skip
            continue
        for cell in ("gru", "lstm"):
            remedies: list[Remedy] = [SwapCell(cell, part.module)]
            if lag > 3:
                remedies.append(Chrono(lag + 1, part.module))
            yield Candidate(tuple(remedies), f"{reason}; a gated cell can keep what it holds")


def _falls_short(diagnosis: Diagnosis) -> bool:
    h = diagnosis.horizons
    if h.gradient is None or h.gradient.at_least:
        return False
    lag = _lag(diagnosis)
    return lag is not None and h.gradient.steps < lag


def _lag(diagnosis: Diagnosis) -> int | None:
    """How far back the gradient should reach: as far as the data ask, or through all steps where that is not known."""
    asked = diagnosis.horizons.asked
    if asked is not None:
        return asked.steps if asked.steps > 0 else None
    longest = max((m.steps for m in diagnosis.measured), default=0)
    return longest - 1 if longest > 1 else None


# --- units and memories that do not act -------------------------------------------------------------------------------


def _for_units(found: list[Part], diagnosis: Diagnosis) -> Iterator[Candidate]:
    for f in diagnosis.worries:
        part = _part(found, f)
        if part is None:
            continue
        if f.code in ("units-saturated", "dead-units") and _simple(part.cell):
            yield Candidate((SpectralRadius(1.0, part.module),), f"{f.where}: {f.what}")
            yield Candidate((Orthogonal(part.module),), f"{f.where}: {f.what}")
        elif f.code == "memory-full" and part.layer is not None and type(part.cell) not in KEEPS:
            yield Candidate((SwapCell("lstm", part.module),), f"{f.where}: {f.what}; it has no gate to forget with")


# --- what they share --------------------------------------------------------------------------------------------------


def _all(diagnosis: Diagnosis, code: str) -> list[Finding]:
    return [f for f in diagnosis.worries if f.code == code]


def _part(found: list[Part], f: Finding) -> Part | None:
    # Where the model itself is the layer it has no name, and a capture calls it by its kind.
    here = [p for p in found if f.where.module == (p.module or p.kind) or f.where.module == p.module]
    return next((p for p in here if p.layer in (None, f.where.layer) or f.where.layer is None), None)


def _modules(found: list[Part]) -> list[Part]:
    """One part of each module that holds recurrent weights."""
    first: dict[str, Part] = {}
    for part in found:
        first.setdefault(part.module, part)
    return list(first.values())


def _simple(cell: Cell) -> bool:
    return isinstance(cell, cells.Simple | cells.PreActivation)


def _round(v: float) -> float:
    """To two figures, for a number that people will paste."""
    return float(f"{v:.2g}")
