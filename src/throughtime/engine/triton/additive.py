"""Which passes can be scanned: those whose states are only ever added to, so that a sum over time replaces the walk."""

from __future__ import annotations

from functools import lru_cache

from throughtime.engine.tape import Tape

FREE, UNIT, OTHER = "free", "unit", "other"


@lru_cache(maxsize=512)
def summed(tape: Tape, carried: str) -> tuple[int, ...] | None:
    """The carried values that a pass only adds to, by number among the states; None if the pass cannot be scanned.

    carried: "s" for a forward tape (states), "d" for a backward tape (their gradients). A pass can be scanned where
    each carried value either goes out as itself plus what no carried value has a part in (the additive cells; the
    memory of the 1997 LSTM under the truncated gradient, whose backward pass is a reverse cumulative sum), or does not
    matter for the next step at all.
    """
    names = tape.names(carried)
    inputs = {i: names.index(p.name) for i, p in enumerate(tape.inputs) if p.kind == carried}
    if any(op.name in ("linear", "linear_t", "mean") for op in tape.ops):
        return None
    n = len(tape.inputs)
    read = {a for op in tape.ops for a in op.args} | {v for o in tape.outputs for v in o.values}
    out = {names.index(o.name): o.values[0] for o in tape.outputs if o.kind == "s"}
    # A carried value that nobody reads, or that never goes out, is the same as none after the first step.
    moving = {j for i, j in inputs.items() if i in read and j in out}
    status: list[tuple[str, int]] = [
        (UNIT, inputs[i]) if i in inputs and inputs[i] in moving else (FREE, -1) for i in range(n)
    ]
    for op in tape.ops:
        status.append(_status(op.name, [status[a] for a in op.args], op.consts))
    return tuple(sorted(moving)) if all(status[out[j]] == (UNIT, j) for j in moving) else None


def _status(name: str, args: list[tuple[str, int]], consts: tuple[float, ...]) -> tuple[str, int]:
    kinds = [kind for kind, _ in args]
    if all(kind == FREE for kind in kinds):
        return FREE, -1
    # Which operand may be the carried value, with the others free, such that it passes with the factor 1.
    spots = {"add": (0, 1), "sub": (0,), "fma": (2,), "fnma": (2,), "dtanh_add": (2,), "copy": (0,)}.get(name, ())
    if name == "affine" and consts[0] == 1:
        spots = (0,)
    for spot in spots:
        if kinds[spot] == UNIT and all(kind == FREE for i, kind in enumerate(kinds) if i != spot):
            return args[spot]
    return OTHER, -1
