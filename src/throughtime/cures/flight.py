"""What the flight recorder found: where a run first met a bad number, and which of the known causes it was."""

from __future__ import annotations

from dataclasses import dataclass, replace

from throughtime.plain import Plain

INPUT = "bad input"
PARAMETER = "bad parameter"
OVERFLOW = "overflow in the forward pass"
EXPLODED = "exploded gradient"
GRADIENT = "bad gradient"
LOSS = "the loss itself"
UPDATE = "the update"
UNKNOWN = "not located"
CAUSES = (INPUT, PARAMETER, OVERFLOW, EXPLODED, GRADIENT, LOSS, UPDATE, UNKNOWN)

MEANS = {
    INPUT: "NaN or infinity came in with the batch, or with the state that was carried into it",
    PARAMETER: "a weight held NaN or infinity before the step began",
    OVERFLOW: "finite numbers went in and NaN or infinity came out",
    EXPLODED: "the gradient grew on its way back until it left the range of its numbers, or all that was seen before",
    GRADIENT: "a gradient became NaN or infinite all at once: a hook, or a derivative that does not exist there",
    LOSS: "all that the model gave is finite; the loss, or its derivative, is not",
    UPDATE: "the gradient was good; the optimiser made bad weights of it, a bad state of its own, or a step too long",
    UNKNOWN: "no cause was found",
}
DO = {
    INPUT: "look at this sample; clean the data. A carried state belongs into guard.carry, which is put back",
    PARAMETER: "look for what writes to this parameter besides the optimiser",
    OVERFLOW: "smaller steps or weights; a saturating activation in place of ReLU",
    EXPLODED: "clip the gradient by its norm (Pascanu 2013), at about the largest norm of the good steps",
    GRADIENT: "look at the hooks on it, and for sqrt, log, norm or division at 0",
    LOSS: "look at the targets there, and for log, exp and division in the loss",
    UPDATE: "a lower learning rate; for Adam a larger eps",
    UNKNOWN: "",
}


@dataclass(frozen=True)
class FlightRecord(Plain):
    """Where the first bad number of a step stands. What does not apply, or could not be found out, is None.

    iteration: the step, as the guard counts them.      cause: one of `flight.CAUSES`.
    direction: "forward" or "backward".                 module: its name in the model.
    layer, reverse: which layer of a recurrent module, and whether it runs from the last step to the first.
    t:         the time step. For a loop over a module or a cell: the how-manieth of its calls, from 0.
    gate:      the net input it stands in, by the cell's name for it ("f", "u_h", ...).
    part:      what is bad: "input", "initial state h", "net input f", "state c", "output", the name of a parameter.
    sample:    which of the batch; None where it is more than one and the number belongs to none of them.
    value:     the number, as it would be without the limits of the model's dtype, where that is known.
    line:      for a module of the user's own, the line and the operation.
    ruled_out: what was looked at and found good, in sentences. notes: what else was seen.
    """

    iteration: int
    cause: str
    direction: str | None = None
    module: str | None = None
    layer: int | None = None
    reverse: bool | None = None
    t: int | None = None
    gate: str | None = None
    part: str | None = None
    sample: int | None = None
    value: float | None = None
    line: str | None = None
    ruled_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def located(self) -> bool:
        """Whether the cause was found."""
        return self.cause != UNKNOWN

    @property
    def place(self) -> str:
        """Module, layer, direction, step, part and sample in one line."""
        parts = [] if self.module is None else [self.module]
        if self.layer is not None:
            parts.append(f"layer {self.layer}{', reverse' if self.reverse else ''}")
        if self.t is not None:
            parts.append(f"t = {self.t}")
        if self.part is not None:
            parts.append(self.part)
        if self.gate is not None and not (self.part or "").startswith("net input"):
            parts.append(f"gate {self.gate}")
        if self.sample is not None:
            parts.append(f"sample {self.sample}")
        if self.direction is not None:
            parts.append(f"{self.direction} pass")
        return ", ".join(parts)

    def __str__(self) -> str:
        value = "" if self.value is None else f" ({self.value:.4g})"
        lines = [f"iteration {self.iteration}: {self.cause}{': ' + self.place if self.place else ''}{value}"]
        lines.append(f"  {MEANS[self.cause]}")
        if self.line is not None:
            lines.append(f"  at {self.line}")
        lines += [f"  ruled out: {r}" for r in self.ruled_out] if not self.located else []
        lines += [f"  note: {n}" for n in self.notes]
        return "\n".join([*lines, f"  Do: {DO[self.cause]}"] if DO[self.cause] else lines)

    def with_notes(self, *notes: str) -> FlightRecord:
        """The same with further notes."""
        return replace(self, notes=(*self.notes, *notes))
