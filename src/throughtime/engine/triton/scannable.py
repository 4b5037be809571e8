"""Which passes can be scanned: those whose states are carried on linearly, each by itself, so that a scan over time
replaces the walk."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from throughtime.engine.tape import Op, Tape

# For each operation in which a carried value may stand: it is a sum of terms, each a product of the operands at these
# places; at the places left out only values that nothing carried has a part in may stand.
TERMS: dict[str, tuple[tuple[int, ...], ...]] = {
    "affine": ((0,),),
    "copy": ((0,),),
    "add": ((0,), (1,)),
    "sub": ((0,), (1,)),
    "mul": ((0, 1),),
    "div": ((0,),),
    "select": ((1,), (2,)),
    "fma": ((0, 1), (2,)),
    "fms": ((0, 1), (2,)),
    "fnma": ((0, 1), (2,)),
    "lerp": ((1,), (2,)),
    "dsigmoid": ((0,),),
    "dtanh": ((0,),),
    "mul_tanh": ((0,),),
    "mul_dsigmoid": ((0, 1),),
    "mul_dtanh": ((0, 1),),
    "dtanh_add": ((0,), (2,)),
    "add_dtanh": ((0,), (1,)),
}
# Of these, the places at which a carried value passes with the factor 1 where nothing else is carried.
AS_IT_IS = {"copy": (0,), "add": (0, 1), "sub": (0,), "fma": (2,), "fnma": (2,), "dtanh_add": (2,)}

FREE, OTHER = -1, -2


class Carried(NamedTuple):
    """A carried value by its number among the states, and whether it is only added to: its factor is 1."""

    number: int
    added: bool


class _Part(NamedTuple):
    """What a value has of the carried ones: none (FREE), a multiple of one, or anything (OTHER)."""

    of: int
    as_it_is: bool = False


@lru_cache(maxsize=512)
def scannable(tape: Tape, kind: str) -> tuple[Carried, ...] | None:
    """The carried values that a pass moves on, None if the pass cannot be scanned.

    kind: "s" for a forward tape (states), "d" for a backward tape (their gradients). A pass can be scanned where each
    carried value goes out as v' = a v + b, with a and b that no carried value has a part in (a cell without recurrent
    weights whose gates see x alone; the memory of an LSTM under the truncated gradient; with a = 1 the additive cells
    and the LSTM of 1997, whose backward pass is then a reverse cumulative sum), or does not matter for the next step.
    """
    names = tape.names(kind)
    inputs = {i: names.index(p.name) for i, p in enumerate(tape.inputs) if p.kind == kind}
    if any(op.name in ("linear", "linear_t", "mean") for op in tape.ops):
        return None
    read = {a for op in tape.ops for a in op.args} | {v for o in tape.outputs for v in o.values}
    out = {names.index(o.name): o.values[0] for o in tape.outputs if o.kind == "s"}
    # A carried value that nobody reads, or that never goes out, is the same as none after the first step.
    moving = {j for i, j in inputs.items() if i in read and j in out}
    found = _parts_of(tape, {i: j for i, j in inputs.items() if j in moving})
    if any(found[out[j]].of not in (j, FREE) for j in moving):
        return None
    return tuple(Carried(j, found[out[j]] == _Part(j, True)) for j in sorted(moving))


def _parts_of(tape: Tape, carried: dict[int, int]) -> list[_Part]:
    found = [_Part(carried[i], True) if i in carried else _Part(FREE) for i in range(len(tape.inputs))]
    for op in tape.ops:
        found.append(_part(op, [found[a] for a in op.args]))
    return found


def _part(op: Op, args: Sequence[_Part]) -> _Part:
    places = [k for k, part in enumerate(args) if part.of != FREE]
    if not places:
        return _Part(FREE)
    terms, of = TERMS.get(op.name, ()), {args[k].of for k in places}
    inside = {k for term in terms for k in term}
    if of == {OTHER} or len(of) > 1 or not inside.issuperset(places):
        return _Part(OTHER)
    if any(sum(k in places for k in term) > 1 for term in terms):
        return _Part(OTHER)
    same = len(places) == 1 and args[places[0]].as_it_is and places[0] in AS_IT_IS.get(op.name, ())
    return _Part(of.pop(), same or (op.name == "affine" and op.consts[0] == 1 and args[0].as_it_is))


def factor_of(tape: Tape, carried: dict[int, int]) -> dict[int, int]:
    """The values that are multiples of a carried one plus what is free, by value number: which one.

    carried: the inputs that hold the carried values, and their numbers.
    """
    return {v: part.of for v, part in enumerate(_parts_of(tape, carried)) if part.of >= 0}


def factors(op: Op, args: Sequence[str], factor: Sequence[str | None]) -> tuple[Op, list[str]]:
    """The operation, on other operands, that gives what the result has of a carried value, as a factor.

    args: names of the operands; factor: for each what it has of the carried value, None where it is free.
    """
    given = list(args)
    for term in TERMS[op.name]:
        here = [k for k in term if factor[k] is not None]
        for k in here:
            given[k] = str(factor[k])
        if not here:  # a term without the carried value adds nothing to its factor, a NaN neither
            for k in term:
                given[k] = "0.0"
    return (Op("affine", op.args, (op.consts[0], 0.0)) if op.name == "affine" else op), given
