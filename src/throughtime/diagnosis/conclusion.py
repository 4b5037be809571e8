"""From findings and horizons to a verdict: which case it is, and two or three plain sentences that say so."""

from __future__ import annotations

from collections.abc import Sequence

from throughtime.diagnosis.finding import Finding, steps
from throughtime.diagnosis.horizons import Horizons
from throughtime.diagnosis.measured import Measured
from throughtime.diagnosis.symptoms import rate

CASES = {
    "broken": "something is NaN or infinite",
    "faulty": "there is another fault: the first finding names it",
    "explodes": "the gradient explodes",
    "unreached": "the loss does not depend on the recurrent layers",
    "no past": "no recurrence ran over more than one step",
    "vanishes": "the gradient vanishes before the dependency in the data",
    "nearer": "the gradient vanishes before what the data hold, or the model uses less, but nearer inputs say the same",
    "window": "training is cut shorter than the dependency in the data",
    "unclear": "the gradient seems to fall short of the data, by less than can be told",
    "unused": "the gradient reaches as far as the data ask, and the model does not use it",
    "unknown": "what the data ask for is not known, and the gradient does not reach everything",
    "no dependency": "the data hold no dependency",
    "no memory": "the target depends on the current input only",
    "healthy": "the gradient reaches as far as the data ask, and nothing is wrong",
}


def conclude(
    findings: Sequence[Finding],
    horizons: Horizons,
    farthest: Measured | None,
    why: str | None = None,
    changed: frozenset[str] = frozenset(),
) -> tuple[str, str]:
    """The case and the verdict. farthest: the recurrence whose gradient reaches farthest, whose horizon counts; None
    where none could be measured, and `why`. changed: the modules whose state was changed from step to step."""
    errors = [f for f in findings if f.severity == "error"]
    worries = [f for f in findings if f.severity == "warning" and not f.code.startswith("horizons")]
    first = next((f for f in errors if f.code == "not-finite"), None)
    if first is not None:
        return "broken", f"Broken: {_at(first)}. {first.means} Nothing else can be judged before that is mended."
    exploding = next((f for f in findings if f.code == "explodes"), None)
    if exploding is not None:
        return "explodes", f"The gradient explodes: in {_at(exploding)}. {exploding.means}"
    if errors:
        return "faulty", f"A fault: {_at(errors[0])}. {errors[0].means}"
    if farthest is None:
        none = next((f for f in findings if f.code == "no-gradient"), None)
        if none is not None:
            return "unreached", f"No gradient arrives: {_at(none)}. {none.means}"
        reason = "" if why is None else f" The reason: {why}."
        return "unknown", f"The gradient could not be measured, so nothing can be said of how far it reaches.{reason}"
    if farthest.steps == 1 and farthest.where.module in changed:
        return "unknown", (
            f"Not followed through time: the state of {farthest.where} was changed between its steps (masked, scaled, "
            "mixed with another), so that each step stands by itself. Make this change inside the module, or inside "
            "one of your own that takes the state and returns it, and diagnose again."
        )
    if farthest.steps == 1:
        return "no past", (
            f"There is no past: {farthest.where} ran over 1 step, so no gradient goes back in time. Give it "
            "sequences of 2 steps and more, along the axis of time."
        )
    case = horizons.case
    if case in ("vanishes", "window"):
        return case, _short(case, horizons, farthest)
    if worries:
        more = f" And {len(worries) - 1} more." if len(worries) > 1 else ""
        return "faulty", f"A fault: {_at(worries[0])}. {worries[0].means}{more} {_reach(horizons)}"
    if case == "unknown":
        return _unknown(horizons, farthest)
    if case in ("unclear", "unused"):
        return case, horizons.sentence()
    if case in ("no dependency", "no memory"):
        return case, _nothing_to_remember(case, horizons)
    if case == "nearer" and not horizons.falls_short:
        return case, horizons.sentence()
    if case == "nearer":
        return case, (
            f"Nearer inputs say the same: the targets depend on inputs {horizons.data} back, and the gradient vanishes "
            f"after {horizons.gradient}; but what lies farther back adds less than 1 % to what the nearer inputs say. "
            "That the gradient vanishes does little harm."
        )
    used = ", and the model uses it" if case == "healthy" else ""
    return "healthy", f"Healthy: {_reach(horizons)[0].lower()}{_reach(horizons)[1:-1]}{used}. Nothing else is wrong."


def _short(case: str, h: Horizons, m: Measured) -> str:
    asks = h.asked
    assert asks is not None
    if case == "window":
        return (
            f"The window is too short: the data hold a dependency {asks} back, and training looks back "
            f"{_back(h)} only. No gradient tells of it, whatever the weights."
        )
    return (
        f"Wrong weights, not missing dependency: the data hold a dependency {asks} back, and the gradient vanishes "
        f"after {h.gradient}{_why(m)}. As it is, the network cannot learn it."
    )


def _why(m: Measured) -> str:
    factor = rate(m)
    parts = []
    if factor is not None:
        parts.append(f"the network is contractive, a change of its state shrinks by a factor of {factor:.2g} a step")
    if m.memories:
        half = m.memories[-1].half_life.median().item()
        parts.append(f"its memories keep half for {steps(half)} (median unit)")
    return f": {', and '.join(parts)}" if parts else ""


def _unknown(h: Horizons, m: Measured) -> tuple[str, str]:
    assert h.gradient is not None
    if h.gradient.at_least:
        return "healthy", (
            f"Healthy: the gradient reaches as far back as it was followed, {steps(h.gradient.steps)}. Nothing else is "
            "wrong."
        )
    return "unknown", (
        f"The gradient vanishes after {h.gradient}, of {m.steps - 1} that there are{_why(m)}. Whether that is a fault "
        "the data decide, and what they ask for is not known: give data=(inputs, targets)."
    )


def _nothing_to_remember(case: str, h: Horizons) -> str:
    what = (
        "No dependency in the data: at no lag that was measured does the target depend on the input"
        if case == "no dependency"
        else "No memory is asked for: the target depends on the current input only, as far as single inputs show"
    )
    after = ""
    if h.gradient is not None:
        after = (
            f" That the gradient vanishes after {h.gradient} does no harm."
            if not h.gradient.at_least
            else " The gradient would reach farther."
        )
    return f"{what}: there is nothing to remember.{after}"


def _reach(h: Horizons) -> str:
    if h.gradient is None:
        return "The gradient was not measured."
    if h.asked is None or h.asked.steps < 0:
        return f"The gradient reaches {h.gradient}."
    return f"The gradient reaches {h.gradient}, and the data ask for {h.asked}."


def _back(h: Horizons) -> str:
    n = (h.window or 1) - 1
    return f"{n} step{'' if n == 1 else 's'}"


def _at(finding: Finding) -> str:
    return f"{finding.where}: {finding.what}"
