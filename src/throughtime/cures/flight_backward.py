"""Names the place of a bad gradient: exploded in a recurrence, made at once by a module, or come from outside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from throughtime.cures import flight
from throughtime.cures.flight_inside import Growth, first_backward, growth, stack_of
from throughtime.cures.flight_log import Seen, Visit
from throughtime.cures.flight_replay import Replay
from throughtime.cures.flight_where import (
    bad_of,
    by_shape,
    first_index,
    first_value,
    in_layer,
    in_step,
    largest_finite,
    sample_of,
)
from throughtime.flow.capture_calls import LayerCall
from throughtime.flow.passed import Outside, PassedStack

Found = dict[str, Any]  # fields of a FlightRecord
GROWN = 10.0  # how many times larger a gradient is than what entered, for the growth to be worth a name


def from_outside(r: Replay, index: int, g: Tensor) -> Found:
    """A bad gradient that came to the model's output: the loss made it."""
    layers = [c for c in r.steps.calls.values() if isinstance(c, LayerCall)]
    found: Found = {"cause": flight.LOSS, "direction": "backward", "module": r.names[r.call.module]}
    found.update(part="output", value=first_value(g))
    call = next((c for c in layers if c.module is r.module), None)
    bad = bad_of(g)
    spot = by_shape(bad, r.steps.extent) if call is None else in_layer(call, index, bad)
    where = f"at {list(first_index(g))} of {list(g.shape)}, tensor {index} of what the model returned"
    return {**found, **spot._asdict(), "notes": (where,)}


def in_backward(r: Replay, seen: Seen) -> Found:
    """The first bad gradient of a backward pass that began well."""
    visit = seen.visit
    found: Found = {"direction": "backward", "module": visit.name, "value": first_value(seen.tensor)}
    found["t"] = r.steps.t(visit)
    found["cause"] = _cause(r, seen)
    call = r.steps.layer(visit)
    if seen.how == "enters":
        found["part"] = "output"
        found["notes"] = (f"it comes to what {visit.name} returned from the code around it",)
        if call is not None:
            spot = in_layer(call, seen.index, bad_of(seen.tensor))
            return {**found, "sample": spot.sample, "t": found["t"] if call.is_cell else spot.t}
        if found["t"] is not None:
            return {**found, "sample": in_step(bad_of(seen.tensor))}
        return {**found, **by_shape(bad_of(seen.tensor), r.steps.extent)._asdict()}
    found["part"] = "input"
    if call is not None and (inside := _inside(r, visit, call, seen)):
        return {**found, **inside}
    if found["t"] is None:
        return found
    found["sample"] = in_step(bad_of(seen.tensor))
    # What a step sends back to its state is the gradient of the state after the step before.
    name = r.steps.state(visit, seen.index)
    return {**found, "part": f"state {name}", "t": found["t"] - 1} if name is not None and found["t"] > 0 else found


def in_parameters(r: Replay, model: nn.Module, names: list[str], g: Tensor) -> Found:
    """Only gradients of parameters are bad: the layer whose steps add up to too much, or a hook on the parameter."""
    for visit in reversed(r.log.order):
        call = r.steps.layer(visit)
        prefix = f"{visit.name}."
        if call is None or not any(n.startswith(prefix) or visit.module is r.module for n in names):
            continue
        found = _inside(r, visit, call, None)
        if found:
            return {"direction": "backward", "module": visit.name, "t": r.steps.t(visit), **found}
    return named(model, names, "its gradient alone is bad: something changes it, a hook on the parameter for one", g)


def named(model: nn.Module, names: list[str], note: str, g: Tensor) -> Found:
    """A bad gradient of which the parameter is all that is known."""
    owner, _, own = names[0].rpartition(".")
    more = () if len(names) == 1 else (f"the gradients of {len(names)} parameters are bad, this is the first of them",)
    found: Found = {"cause": flight.GRADIENT, "direction": "backward", "module": owner or type(model).__name__}
    return {**found, "part": own, "notes": (note, *more), "value": first_value(g)}


def grown(r: Replay) -> tuple[float, Found] | None:
    """Where a gradient that stayed finite grew most, and how many times; None where it did not grow."""
    best: tuple[float, Found] | None = None
    for visit in r.log.order:
        call = r.steps.layer(visit)
        if call is None or call.is_cell:
            continue
        stack = stack_of(call)
        found: Growth | None = growth(stack, outside_of(r, visit, call, stack))
        if found is not None and found.times > GROWN and (best is None or found.times > best[0]):
            p = found.place
            best = found.times, {
                "cause": flight.EXPLODED, "direction": "backward", "module": visit.name, "layer": p.layer,
                "reverse": p.reverse, "t": p.t, "part": p.part, "sample": sample_of(call, p.sample), "value": p.value,
                "notes": (f"on its way back through this layer the gradient grew {found.times:.3g} times",),
            }  # fmt: skip
    chain = _grown_in_loops(r)
    return chain if best is None or (chain is not None and chain[0] > best[0]) else best


def _grown_in_loops(r: Replay) -> tuple[float, Found] | None:
    by_module: dict[int, list[tuple[int, float, Visit]]] = {}
    for visit in r.log.order:
        t = r.steps.t(visit)
        if r.steps.is_step(visit) and t is not None:
            size = max((largest_finite(g) for g in r.log.entered.get(visit.key, {}).values()), default=0.0)
            by_module.setdefault(id(visit.module), []).append((t, size, visit))
    best: tuple[float, Found] | None = None
    for steps in by_module.values():
        entered = next((size for _, size, _ in reversed(steps) if size > 0), 0.0)
        t, size, visit = max(steps, key=lambda s: s[1])
        if entered and size / entered > GROWN and (best is None or size / entered > best[0]):
            note = f"on its way back through this loop the gradient grew {size / entered:.3g} times"
            best = size / entered, {
                "cause": flight.EXPLODED, "direction": "backward", "module": visit.name, "t": t, "part": "state h",
                "value": size, "notes": (note,),
            }  # fmt: skip
    return best


def _cause(r: Replay, seen: Seen) -> str:
    # Where infinity comes of large numbers it grew; NaN out of ordinary ones was made at once.
    sizes = [largest_finite(g) for entered in r.log.entered.values() for g in entered.values()]
    return flight.EXPLODED if max(sizes, default=0.0) > r.largest**0.5 else flight.GRADIENT


def _inside(r: Replay, visit: Visit, call: LayerCall, seen: Seen | None) -> Found:
    stack = stack_of(call)
    outside = outside_of(r, visit, call, stack)
    place = first_backward(stack, outside, r.largest)
    if place is None and seen is None:
        # No step is too large, but their sum over time, times the input, may be.
        place = first_backward(stack, outside, r.largest**0.5)
    if place is None:
        return {}
    t = r.steps.t(visit) if call.is_cell else place.t
    found: Found = {"cause": flight.EXPLODED, "part": place.part, "gate": place.gate, "value": place.value}
    found.update(t=t, sample=sample_of(call, place.sample))
    return found if call.is_cell else {**found, "layer": place.layer, "reverse": place.reverse}


@torch.no_grad()
def outside_of(r: Replay, visit: Visit, call: LayerCall, stack: PassedStack) -> Outside:
    """What entered a layer or a cell from outside, by layer, direction and state, as the replay saw it."""
    entered = r.log.entered.get(visit.key, {})
    first = 0 if call.is_cell else 1
    last = stack.recurrences[0 if stack.skip else -1 :]
    width = sum(d.output.shape[-1] for directions in last for d in directions)
    T, B = call.x.shape[:2]
    y = entered.get(0) if not call.is_cell else None
    zero = torch.zeros(T, B, width, dtype=torch.float64, device=call.x.device)
    outside = stack.enters(zero if y is None else call.output_order(y.double()))
    flat = [(k, d) for k, directions in enumerate(stack.recurrences) for d in range(len(directions))]
    for s in range(len(call.cell.states)):
        v = entered.get(first + s)
        if v is None:
            continue
        rows = call.state_order(v.double())
        for n, (k, d) in enumerate(flat):
            at = stack.recurrences[k][d].at_last_step([rows[n]])[0]
            had = outside[k][d][s]
            outside[k][d][s] = at if had is None else had if at is None else had + at
    return outside
