"""What a measured recurrence shows, as findings: explosion, contraction, shut gates, full memories, dead units."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from throughtime.diagnosis.finding import Finding, Where, steps
from throughtime.diagnosis.measured import Measured
from throughtime.flow import GateStatistics, MemoryStatistics, UpdateSizes

# Rules of thumb; docs/verdicts.md says where each comes from.
GROWN = 10.0  # times its size at lag 0: a gradient that explodes
SHUT = 1e-3  # a gate that is nearer to 0, or to 1, than this for a unit on average does not act, nor learns
MOST = 0.5  # the share of units from which on it is the layer and not the unit that has a fault
SATURATED = 0.98  # of the time at 0 or 1: a gate that only switches
LEFT = math.log(100)  # 1 % is left after LEFT / rate steps


def of_recurrence(m: Measured) -> Iterator[Finding]:
    """The findings of one recurrence, the gravest first."""
    if m.broken is not None:
        yield Finding(
            "error", "not-finite", m.where, m.broken, "Everything that is computed from it is NaN.",
            "go back to a checkpoint from before; then look at the batch, the learning rate and the clip threshold",
        )  # fmt: skip
        return
    if m.overflow:
        yield Finding(
            "error", "explodes", m.where, f"the gradient leaves the range of float64 within {m.steps} steps",
            "It explodes: one step with it ruins the weights.",
            "scale U down to a spectral radius of about 1, and clip the gradient", math.inf, "times",
        )  # fmt: skip
    elif m.profile is not None and (grown := growth(m.profile)) is not None:
        per_step = grown ** (1 / max(1, round(7 / 8 * (len(m.profile) - 1))))
        yield Finding(
            "warning", "explodes", m.where,
            f"the gradient grows to {grown:.3g} times its size at lag 0 within {len(m.profile) - 1} steps",
            f"It explodes, by a factor of {per_step:.3g} a step: what lies far back drowns what is near.",
            "scale U down to a spectral radius of about 1, and clip the gradient", grown, "times",
        )  # fmt: skip
    if m.unreached:
        yield Finding(
            "warning", "no-gradient", m.where, "no gradient enters this recurrence",
            "The loss does not depend on it: it does not learn.",
            "look which output is used, and for detach() or torch.no_grad() on the way to the loss", 0.0,
        )  # fmt: skip
    yield from _gates(m)
    for memory in m.memories:
        yield from _memory(m.where, memory)
    yield from _activity(m)
    yield from _contraction(m)


def growth(profile: Tensor) -> float | None:
    """How far a gradient has grown, if it explodes: to GROWN times its size at lag 0 and more, and still growing.

    Sizes are geometric means over a quarter of the lags, so that no single lag decides; the last quarter must also be
    sqrt(GROWN) times the second one, or what grew is lag 0 that was small. None if it does not explode.
    """
    n = len(profile)
    if n < 4:
        return None
    logs = profile.clamp(min=1e-300).log()
    last, second = logs[-(n // 4) :].mean().item(), logs[n // 4 : n // 2].mean().item()
    return math.exp(last) if last >= math.log(GROWN) and last - second >= math.log(GROWN) / 2 else None


def rate(m: Measured) -> float | None:
    """The factor by which a change of the state shrinks a step, exp(lambda_1), if it surely does; else None."""
    if m.lyapunov is None:
        return None
    mean, error = m.lyapunov.exponents[0].item(), m.lyapunov.standard_error[0].item()
    margin = 0.0 if math.isnan(error) else 2 * error
    return math.exp(mean) if mean + margin < 0 else None


def _contraction(m: Measured) -> Iterator[Finding]:
    if m.lyapunov is None:
        return
    largest, factor = m.lyapunov.exponents[0].item(), rate(m)
    if factor is not None:
        far = LEFT / -largest if largest > -math.inf else 0.0
        yield Finding(
            "note", "contracts", m.where, f"it contracts: the largest Lyapunov exponent is {largest:.3g} nats a step",
            f"On these inputs a change of the state shrinks by a factor of {factor:.3g} a step, to 1 % in {steps(far)};"
            " the gradient with it.", "", largest, "nats a step",
        )  # fmt: skip
    elif largest > 0.01:
        yield Finding(
            "note", "expands", m.where, f"it expands: the largest Lyapunov exponent is {largest:.3g} nats a step",
            "On these inputs small changes of the state grow; the gradient may explode over longer sequences.", "",
            largest, "nats a step",
        )  # fmt: skip


def _gates(m: Measured) -> Iterator[Finding]:
    if m.gates is None:
        return
    keeping = keeping_gates(m)
    for gate in m.gates.gates:
        shut, stuck = _share(gate.unit_mean < SHUT), _share(gate.unit_mean > 1 - SHUT)
        H = len(gate.unit_mean)
        if shut > MOST:
            what = _SHUT.get(gate.name, "What it lets through is 0")
            yield Finding(
                "warning", "gate-shut", m.where, f"gate {gate.name} is shut in {round(shut * H)} of {H} units "
                f"(below {SHUT:g} on average)", f"{what}, and its derivative is as small: it cannot open again.",
                f"raise the bias of {gate.name}, shrink its weights, or go back to a checkpoint from before", shut,
                "share of units",
            )  # fmt: skip
        elif stuck > MOST and gate.name not in keeping:
            yield Finding(
                "warning", "gate-stuck-open", m.where, f"gate {gate.name} is open in {round(stuck * H)} of {H} units "
                f"(above {1 - SHUT:g} on average)", "Its derivative is as good as 0: it does not act as a gate, and "
                "cannot learn to.", f"lower the bias of {gate.name}, or shrink its weights", stuck, "share of units",
            )  # fmt: skip
        elif gate.low + gate.high > SATURATED and not (gate.name in keeping and gate.high > 0.5):
            yield Finding(
                "warning", "gate-saturated", m.where, f"gate {gate.name} is at 0 or 1 for "
                f"{gate.low + gate.high:.1%} of the time", "It only switches, and hardly any gradient reaches its "
                "weights.", "shrink the weights, scale the inputs down, or lower the learning rate",
                gate.low + gate.high, "share of the time",
            )  # fmt: skip
        elif gate.low + gate.high > MOST:
            yield _saturation(m.where, gate)


_SHUT = {
    "i": "Nothing is written into the memory",
    "o": "Nothing of the memory is shown",
    "f": "The memory is emptied at each step",
    "u": "The state is replaced at each step",
    "r": "The candidate sees nothing of the old state",
}


def _saturation(where: Where, gate: GateStatistics) -> Finding:
    return Finding(
        "note", "gate-saturation", where, f"gate {gate.name} is below 0.05 for {gate.low:.0%} and above 0.95 for "
        f"{gate.high:.0%} of the time", "There hardly any gradient reaches its weights; trained gates often are so.",
        "", gate.low + gate.high, "share of the time",
    )  # fmt: skip


def keeping_gates(m: Measured) -> set[str]:
    """The gates that, open, keep a memory: f of an LSTM, u of a GRU. To be open is what they are for."""
    return {"f", "u"} if m.memories else set()


def _memory(where: Where, memory: MemoryStatistics) -> Iterator[Finding]:
    if memory.full is None:
        return
    full = memory.full[~memory.full.isnan()]
    if len(full) and full[-1] > 0.9:
        yield Finding(
            "warning", "memory-full", where, f"{full[-1]:.0%} of the memories {memory.state} are full at the last step "
            f"(|tanh| above 0.95)", "What is added hardly shows any more, and hardly any gradient comes back through "
            "it.", "let it forget (a forget gate below 1), or start from a fresh state more often", full[-1].item(),
            "share of units",
        )  # fmt: skip


def _activity(m: Measured) -> Iterator[Finding]:
    if m.active is None:
        return
    H = len(m.active)
    dead = int((m.active == 0).sum())
    if dead and dead / H > MOST:
        relu = "relu" in m.cell
        yield Finding(
            "warning", "dead-units", m.where, f"{dead} of {H} units are {'dead' if relu else 'saturated'} all the time",
            "Their slope is 0 at every step of every sequence: no gradient passes through them.",
            "lower the learning rate, shrink the weights" + (", or start from a bias of 0" if relu else ""),
            dead / H, "share of units",
        )  # fmt: skip
    elif m.active.mean() < 0.1:
        yield Finding(
            "warning", "units-saturated", m.where, f"units are saturated for {1 - m.active.mean():.0%} of the time",
            "Their slope is near 0 there, and the gradient falls at each such step.",
            "shrink the weights, or scale the inputs down", 1 - m.active.mean().item(), "share of the time",
        )  # fmt: skip


def of_updates(updates: UpdateSizes) -> Iterator[Finding]:
    """Parameters whose step is not a number, too long, or too short to be one (see `throughtime.flow.updates`)."""
    broken, long, still = (updates.labelled(label) for label in ("not finite", "too long", "stalled"))
    if broken:
        yield Finding(
            "error", "not-finite", Where(parameter=_some(broken)), f"the step of {len(broken)} parameter(s) is NaN or "
            "infinite", "The next step would spoil the weights.", "skip this step; clip the gradient",
            float(len(broken)),
        )  # fmt: skip
    if long:
        ratio = max(updates[name].ratio for name in long)
        yield Finding(
            "warning", "update-too-long", Where(parameter=_some(long)), f"a step changes them by {ratio:.2g} of their "
            "size and less", "A few such steps replace the weights altogether.", "lower the learning rate, or clip",
            ratio, "of their size",
        )  # fmt: skip
    if still:
        ratio = min(updates[name].ratio for name in still)
        of = len(updates.updates)
        yield Finding(
            "warning", "stalled", Where(parameter=_some(still)), f"a step changes {len(still)} of {of} parameters by "
            f"less than 1e-5 of their size (least {ratio:.1g})", "They hardly learn: the gradient that reaches them "
            "has vanished, or the learning rate is too small.", "look which gradient vanishes; raise the learning rate",
            ratio, "of their size",
        )  # fmt: skip


def _share(mask: Tensor) -> float:
    return mask.double().mean().item()


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
