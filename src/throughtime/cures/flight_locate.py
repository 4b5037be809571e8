"""The flight recorder's reading: from a bad step and what was kept of it to the place and the cause."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from throughtime.cures import flight
from throughtime.cures.flight import FlightRecord
from throughtime.cures.flight_backward import from_outside, grown, in_backward, in_parameters, named
from throughtime.cures.flight_calls import ModelCall
from throughtime.cures.flight_forward import bad_input, bad_parameter, overflow
from throughtime.cures.flight_log import is_bad
from throughtime.cures.flight_replay import Replay
from throughtime.cures.flight_where import largest_finite
from throughtime.cures.guard_checks import Fault, finite

Found = dict[str, Any]


def locate(
    iteration: int,
    fault: Fault,
    model: nn.Module,
    calls: Sequence[ModelCall],
    losses: Sequence[float] = (),
    gradients: Mapping[str, Tensor] | None = None,
) -> FlightRecord:
    """Runs the step's calls of the model again, with detection on, and names the first bad number and its cause.

    The weights must be those that the step ran with. losses: the losses of the step. gradients: those of the
    parameters as they came, by name. What cannot be located says so, and what was ruled out. It raises nothing: an
    error on the way is told in the record.
    """
    reader = _Reader(model, fault, calls, losses, gradients or {})
    try:
        found = reader.read()
    except Exception as error:  # whatever the user's model does when it is run again, the training goes on
        reader.ruled_out.append(f"running the step again ended in {type(error).__name__}: {error}")
        found = {}
    return FlightRecord(iteration, **{"cause": flight.UNKNOWN, **found}, ruled_out=tuple(reader.ruled_out))


class _Reader:
    def __init__(
        self,
        model: nn.Module,
        fault: Fault,
        calls: Sequence[ModelCall],
        losses: Sequence[float],
        gradients: Mapping[str, Tensor],
    ):
        self.model, self.fault, self.calls = model, fault, calls
        self.losses, self.gradients = losses, gradients
        self.ruled_out: list[str] = []
        self.names = {m: n or type(m).__name__ for n, m in reversed(list(model.named_modules()))}

    def read(self) -> Found:
        parameters = [n for n, p in self.model.named_parameters() if not finite(p)]
        changed = [c for c in self.calls if not c.untouched]
        replays = [Replay(c, self.names) for c in self.calls if c.untouched]
        if parameters:
            for r in replays:
                r.run(backward=False)
            more = () if len(parameters) == 1 else (f"{len(parameters)} parameters are bad, this is the first",)
            found = bad_parameter(self.model, parameters[0], replays)
            return {**found, "notes": more}
        self.ruled_out.append("every weight is finite")
        if not self.calls:
            self.ruled_out.append("no call of the model was seen in the step, so that nothing can be run again")
            return self._without_calls()
        if changed:
            self.ruled_out.append(f"{len(changed)} call(s) cannot be run again: an argument was changed in place since")
        found = self._forward(replays)
        if found or not all(r.same for r in replays):
            return found
        return self._loss(replays) or self._backward(replays) or self._rest(replays)

    def _forward(self, replays: list[Replay]) -> Found:
        for r in replays:
            r.run()
            seen = r.log.forward
            if seen is None:
                if not r.same:
                    self.ruled_out.append(
                        f"{r.names[r.call.module]}: run again, it gave other numbers than in the step; it depends on "
                        "more than its arguments, weights, buffers and random numbers"
                    )
                continue
            if seen.how == "enters" and not seen.visit.within:
                return bad_input(r)
            return overflow(r, seen)
        if all(r.same for r in replays):
            self.ruled_out.append("the inputs are finite, and all that every module makes of them")
        return {}

    def _loss(self, replays: list[Replay]) -> Found:
        bad = [v for v in self.losses if not math.isfinite(v)]
        for r in reversed(replays):
            for i, g in enumerate(r.call.gradients):
                if g is not None and is_bad(g):
                    found = from_outside(r, i, g)
                    return {**found, "notes": (*found["notes"], *self._size_of_outputs())}
            if r.log.backward is not None:
                break  # what is bad before this call came out of it
        else:
            if not bad:
                self.ruled_out.append("the loss is finite, and the gradient that it sends to the model's output")
        if bad:  # it came first, whatever its gradient did on the way back
            notes = ("the gradient that it sends to the model's output is finite", *self._size_of_outputs())
            return {"cause": flight.LOSS, "value": bad[0], "notes": notes}
        return {}

    def _size_of_outputs(self) -> tuple[str, ...]:
        largest = max((largest_finite(v) for c in self.calls for v in c.outputs if v.is_floating_point()), default=0.0)
        return (f"among the model's outputs are numbers as large as {largest:.3g}",) if largest > 1e6 else ()

    def _backward(self, replays: list[Replay]) -> Found:
        for r in reversed(replays):
            if r.log.backward is not None:
                return in_backward(r, r.log.backward)
            names = [n for n, g in r.gradients.items() if g is not None and is_bad(g)]
            if names:
                prefix = "" if r.call.module is self.model else f"{self.names[r.call.module]}."
                g = r.gradients[names[0]]
                assert g is not None
                return in_parameters(r, self.model, [f"{prefix}{n}" for n in names], g)
        self.ruled_out.append("run again, every gradient is finite")
        return {}

    def _rest(self, replays: list[Replay]) -> Found:
        bad = [n for n, g in self.gradients.items() if not finite(g)]
        if bad:
            note = "run again, the backward pass gives a finite gradient: something changed it after that pass"
            return named(self.model, bad, note, self.gradients[bad[0]])
        if self.fault.what == "gradient":
            found = max((g for g in (grown(r) for r in replays) if g is not None), key=lambda g: g[0], default=None)
            if found is not None:
                return found[1]
            self.ruled_out.append("in no recurrence did the gradient grow tenfold on its way back")
        return {}

    def _without_calls(self) -> Found:
        bad = [n for n, g in self.gradients.items() if not finite(g)]
        self.ruled_out += [f"the gradient of {bad[0]} is bad, and of {len(bad) - 1} more"] if bad else []
        return {}
