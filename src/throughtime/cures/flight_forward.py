"""Names the place of a bad number that a forward pass met: in the input, in a weight, or made on the way."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from throughtime.cures import flight
from throughtime.cures.flight_inside import first_forward, gate_of_row, stack_of
from throughtime.cures.flight_lines import LineFinder
from throughtime.cures.flight_log import Seen, Visit, recurrent
from throughtime.cures.flight_replay import Replay
from throughtime.cures.flight_where import (
    bad_of,
    by_shape,
    first_in_layer,
    first_index,
    first_value,
    in_step,
    sample_of,
)
from throughtime.flow.capture_calls import LayerCall, cell_of
from throughtime.flow.tree import leaves

Found = dict[str, Any]  # fields of a FlightRecord


def bad_parameter(model: nn.Module, name: str, replays: list[Replay]) -> Found:
    """A weight that holds NaN or infinity, and the first step at which a recurrence reads it."""
    value = dict(model.named_parameters())[name].detach()
    owner, _, own = name.rpartition(".")
    module = model.get_submodule(owner) if owner else model
    found: Found = {
        "cause": flight.PARAMETER, "direction": "forward", "module": owner or type(model).__name__, "part": own,
        "value": first_value(value),
    }  # fmt: skip
    for r in replays:
        for visit in r.log.order:
            if visit.module is not module:
                continue
            call = r.steps.layer(visit)
            if call is None:
                return {**found, "t": r.steps.t(visit)}
            return {**found, **_in_recurrent(call, own, value), "t": _first_step(call, own, r, visit)}
    return found


def _in_recurrent(call: LayerCall, own: str, value: Tensor) -> Found:
    base, _, suffix = own.rpartition("_l")
    layer, _, reverse = suffix.partition("_")
    gate = gate_of_row(cell_of(call.module), base or own, first_index(value)[0], value.shape[0])
    if not base:
        return {"gate": gate}
    return {"gate": gate, "layer": int(layer), "reverse": reverse == "reverse"}


def _first_step(call: LayerCall, own: str, r: Replay, visit: Visit) -> int | None:
    if call.is_cell:
        return r.steps.t(visit)
    # A weight is read at every step; the first one is that at which its direction begins.
    return int(call.x.shape[0]) - 1 if own.endswith("_reverse") else 0


def bad_input(r: Replay) -> Found:
    """A bad number among what the model was given."""
    received = r.log.received
    first = next((s for s in received if _reads(r, s)), received[0])
    name = first.visit.name
    given = received[0]
    at = f"at {list(first_index(given.tensor))} of {list(given.tensor.shape)}"
    found: Found = {
        "cause": flight.INPUT, "direction": "forward", "part": "input", "value": first_value(given.tensor),
        "notes": (f"in what {given.visit.name} was given: tensor {given.index}, {at}",),
    }  # fmt: skip
    for seen in received:  # the first recurrence that it comes to tells step and sample
        place = _place_in_step(r, seen)
        if place is not None:
            part = place.pop("part", "input") if seen is first else "input"
            return {**found, **place, "module": name, "part": part}
    return {**found, "module": name, **by_shape(bad_of(given.tensor), r.steps.extent)._asdict()}


def _reads(r: Replay, seen: Seen) -> bool:
    return recurrent(seen.visit) or r.steps.is_step(seen.visit) or not list(seen.visit.module.children())


def _place_in_step(r: Replay, seen: Seen) -> Found | None:
    call = r.steps.layer(seen.visit)
    if call is not None:
        place = first_forward(stack_of(call), None)
        if place is None or not place.entered:
            return None
        t = r.steps.t(seen.visit) if call.is_cell else place.t
        state = place.part != "input"
        found: Found = {"t": t, "sample": sample_of(call, place.sample), "part": place.part}
        return {**found, "layer": place.layer, "reverse": place.reverse} if state and not call.is_cell else found
    if r.steps.is_step(seen.visit):
        return {"t": r.steps.t(seen.visit), "sample": in_step(bad_of(seen.tensor))}
    return None


def overflow(r: Replay, seen: Seen) -> Found:
    """A bad number that a module made of good ones; in a recurrence its layer, step and gate."""
    visit = seen.visit if seen.how == "made" or not seen.visit.within else seen.visit.within[-1]
    found: Found = {
        "cause": flight.OVERFLOW, "direction": "forward", "module": visit.name, "part": "output",
        "value": first_value(seen.tensor), "t": r.steps.t(visit),
    }  # fmt: skip
    call = r.steps.layer(visit) if seen.how == "made" else None
    if call is not None:
        return {**found, **_in_stack(r, call, seen)}
    if found["t"] is not None:
        found["sample"] = in_step(bad_of(seen.tensor))
    held = [n for n, b in visit.module.named_buffers() if b.is_floating_point() and not bool(b.isfinite().all())]
    notes = [f"its buffer {n} holds NaN or infinity" for n in held]
    if seen.how != "made":
        notes.append(f"it is made by the code of {visit.name} itself and then given to {seen.visit.name}")
    return {**found, "notes": tuple(notes), **_line(r, found["t"])}


def _in_stack(r: Replay, call: LayerCall, seen: Seen) -> Found:
    place = first_forward(stack_of(call), r.largest)
    inside = place is not None and not place.entered
    if place is None or not inside:  # float64 did not follow: what came out tells the step at least
        if call.is_cell or seen.index:
            return {"sample": in_step(bad_of(seen.tensor))}
        return first_in_layer(call, bad_of(seen.tensor))._asdict()
    found = {"part": place.part, "gate": place.gate, "sample": sample_of(call, place.sample), "value": place.value}
    return found if call.is_cell else {**found, "layer": place.layer, "reverse": place.reverse, "t": place.t}


def _line(r: Replay, t: int | None) -> Found:
    finder = LineFinder()
    Replay(r.call, r.names, finder).run(backward=False)
    if finder.found is None:
        return {}
    if finder.runs == 1:
        return {"line": finder.found}
    found: Found = {"line": f"{finder.found}, run {finder.run} of {finder.runs}, counted from 0"}
    sizes = {n for v in leaves((r.call.args, r.call.kwargs)) for n in v.shape}
    # A loop that runs as often as the input is long is one over time.
    return {**found, "t": finder.run} if t is None and finder.runs in sizes else found
