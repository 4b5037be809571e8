"""The peephole optimiser of tapes: what to keep from the forward pass, and several operations done as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from throughtime.engine.derive import derive
from throughtime.engine.tape import OPS, Input, Op, Output, Tape

# Operations that only an optimised tape holds; none of them is traced or derived.
FUSED: dict[str, tuple[int, int]] = {
    "copy": (1, 0),
    "fma": (3, 0),  # a * b + c
    "fms": (3, 0),  # a * b - c
    "fnma": (3, 0),  # c - a * b
    "lerp": (3, 0),  # c + a * (b - c)
    "tanh_fma": (3, 0),  # tanh(a * b + c)
    "sigmoid_fma": (3, 0),  # sigmoid(a * b + c)
    "mul_tanh": (2, 0),  # a * tanh(b)
    "mul_dsigmoid": (3, 0),  # a * b * c * (1 - c)
    "mul_dtanh": (3, 0),  # a * b * (1 - c * c)
    "dtanh_add": (3, 0),  # a * (1 - b * b) + c
    "add_dtanh": (3, 0),  # (a + b) * (1 - c * c)
}

# What it costs to compute an operation again, in units of a multiplication; products and means are never repeated.
DEAR = {"exp": 4, "log": 8, "sin": 8, "cos": 8, "erf": 8, "tanh": 4, "sigmoid": 4, "softplus": 8, "power": 8}
NEVER_AGAIN = ("linear", "linear_t", "mean")
PATIENCE = 5


@dataclass(frozen=True)
class Split:
    """A step cut in two at what is kept between the passes.

    forward:  inputs z, s, w, m; outputs the new states "s", and what is kept, "k".
    backward: inputs the old states "s", the new "n", "w", "m", what was kept "k", and the gradient of each new state
              as what comes from the output, "y", and what comes from the next step, "d". Outputs as of `derive`.
    """

    forward: Tape
    backward: Tape
    kept: int


@lru_cache(maxsize=512)
def inference(tape: Tape) -> Tape:
    """The tape of a step that keeps nothing."""
    return fuse(without_identities(tape))


@lru_cache(maxsize=512)
def split(tape: Tape, shown: tuple[bool, ...]) -> Split:
    """Cuts the derivative of a step into a forward tape that keeps what is needed and a backward tape that uses it.

    shown: for each state, whether a gradient enters at its outputs (the loss may not see the memory cell).
    What can be had from the states before and after the step at small cost is computed again rather than kept.
    """
    plain = without_identities(tape)
    back = _relu_by_its_result(without_identities(derive(tape)), plain)
    seen: dict[tuple, int] = {}
    front_keys, back_keys = _keys(plain, seen), _keys(back, seen)
    value_of = {key: v for v, key in reversed(list(enumerate(front_keys)))}
    n = len(back.inputs)
    moving = {i for i, inp in enumerate(back.inputs) if inp.kind == "g"}
    for i, op in enumerate(back.ops):
        if not moving.isdisjoint(op.args):
            moving.add(n + i)
    read = {a for i, op in enumerate(back.ops) if n + i in moving for a in op.args} - moving
    read |= {v for out in back.outputs for v in out.values if v not in moving}

    new_states = {front_keys[out.values[0]]: out.name for out in plain.outputs}
    free: dict[int, Input] = {}  # value of `back` -> the input that holds it
    for v in range(n + len(back.ops)):
        if v < n and back.inputs[v].kind in "swm":
            free[v] = back.inputs[v]
        elif v not in moving and back_keys[v] in new_states:
            free[v] = Input("n", new_states[back_keys[v]])

    kept: list[int] = []

    def price(v: int) -> float:
        if v in free:
            return 0
        if v < n or back.ops[v - n].name in NEVER_AGAIN:
            return float("inf")
        op = back.ops[v - n]
        return DEAR.get(op.name, 1) + sum(price(a) for a in set(op.args))

    def hold(v: int) -> None:
        if price(v) <= PATIENCE:
            return
        if back_keys[v] in value_of:
            free[v] = Input("k", str(len(kept)))
            kept.append(value_of[back_keys[v]])
        else:  # the derivative's own: it is computed from what the forward pass has
            for a in back.ops[v - n].args:
                hold(a)

    for v in sorted(read):
        hold(v)

    outputs = [*plain.outputs, *(Output("k", str(j), (v,)) for j, v in enumerate(kept))]
    forward = Tape(tape.columns, plain.inputs, plain.ops, tuple(outputs))
    return Split(fuse(forward), fuse(_rebased(back, free, shown)), len(kept))


def _rebased(back: Tape, free: dict[int, Input], shown: Sequence[bool]) -> Tape:
    # The backward tape over new inputs: those in `free`, and each "g" as the sum of its two parts.
    n = len(back.inputs)
    inputs = [i for i in back.inputs if i.kind in "swm"]
    inputs += sorted({i for i in free.values() if i.kind in "nk"}, key=lambda i: (i.kind, i.name))
    gs = [i.name for i in back.inputs if i.kind == "g"]
    inputs += [Input("y", name) for name, there in zip(gs, shown, strict=True) if there]
    inputs += [Input("d", name) for name in gs]
    spot = {inp: k for k, inp in enumerate(inputs)}
    number = {v: spot[inp] for v, inp in free.items()}
    ops: list[Op] = []

    def emit(op: Op) -> int:
        ops.append(op)
        return len(inputs) + len(ops) - 1

    for v, inp in enumerate(back.inputs):
        if inp.kind == "g":
            d, y = spot[Input("d", inp.name)], spot.get(Input("y", inp.name))
            number[v] = d if y is None else emit(Op("add", (y, d)))
    for i, op in enumerate(back.ops):
        if n + i not in number and all(a in number for a in op.args):
            number[n + i] = emit(Op(op.name, tuple(number[a] for a in op.args), op.consts))
    outputs = tuple(Output(o.kind, o.name, tuple(number[v] for v in o.values)) for o in back.outputs)
    return Tape(back.columns, tuple(inputs), tuple(ops), outputs).pruned()


def _keys(tape: Tape, seen: dict[tuple, int]) -> list[int]:
    # A number for each value that says how it was computed: equal numbers, equal values, also across tapes.
    keys: list[int] = []
    for inp in tape.inputs:
        keys.append(seen.setdefault(("input", inp.kind, inp.name), len(seen)))
    for op in tape.ops:
        keys.append(seen.setdefault((op.name, op.consts, *(keys[a] for a in op.args)), len(seen)))
    return keys


def without_identities(tape: Tape) -> Tape:
    """The same tape without what computes nothing: `stop` and `clip_grad`, whose work is done once a tape is derived,
    and 1 * a + 0."""
    n = len(tape.inputs)
    number = {i: i for i in range(n)}
    ops: list[Op] = []
    for i, op in enumerate(tape.ops):
        if op.name in ("stop", "clip_grad") or (op.name == "affine" and op.consts == (1.0, 0.0)):
            number[n + i] = number[op.args[0]]
            continue
        number[n + i] = n + len(ops)
        ops.append(Op(op.name, tuple(number[a] for a in op.args), op.consts))
    outputs = tuple(Output(o.kind, o.name, tuple(number[v] for v in o.values)) for o in tape.outputs)
    return Tape(tape.columns, tape.inputs, tuple(ops), outputs).pruned()


def _relu_by_its_result(back: Tape, plain: Tape) -> Tape:
    # a > 0 where relu(a) > 0: the result is a state, often, and need not be kept.
    seen: dict[tuple, int] = {}
    front_keys, back_keys = _keys(plain, seen), _keys(back, seen)
    rectified = {front_keys[op.args[0]] for op in plain.ops if op.name == "relu"}
    n = len(back.inputs)
    number = {i: i for i in range(n)}
    ops: list[Op] = []
    for i, op in enumerate(back.ops):
        args = tuple(number[a] for a in op.args)
        if op.name == "heaviside" and op.consts == (0.0,) and back_keys[op.args[0]] in rectified:
            ops.append(Op("relu", args))
            args = (n + len(ops) - 1,)
        ops.append(Op(op.name, args, op.consts))
        number[n + i] = n + len(ops) - 1
    outputs = tuple(Output(o.kind, o.name, tuple(number[v] for v in o.values)) for o in back.outputs)
    return Tape(back.columns, back.inputs, tuple(ops), outputs).pruned()


def fuse(tape: Tape) -> Tape:
    """The same tape with neighbouring operations merged where the inner one has no other reader."""
    n = len(tape.inputs)
    uses: dict[int, int] = {}
    for op in tape.ops:
        for a in op.args:
            uses[a] = uses.get(a, 0) + 1
    for out in tape.outputs:
        for v in out.values:
            uses[v] = uses.get(v, 0) + 2
    ops = list(tape.ops)

    def inner(v: int, name: str) -> Op | None:
        return ops[v - n] if v >= n and uses.get(v, 0) == 1 and ops[v - n].name == name else None

    for i in range(len(ops)):
        merged = _lerp(ops[i], inner, ops, n) or _merged(ops[i], inner)
        while merged is not None:
            ops[i] = merged
            merged = _merged(ops[i], inner)
    return Tape(tape.columns, tape.inputs, tuple(ops), tape.outputs).pruned()


def _merged(op: Op, inner) -> Op | None:
    # One step of merging. `inner(v, name)` is the operation behind v if it has that name and no other reader.
    if op.name == "add":
        for a, c in (op.args, op.args[::-1]):
            if (m := inner(a, "affine")) and m.consts == (-1.0, 0.0):
                return Op("sub", (c, m.args[0]))
        for a, c in (op.args, op.args[::-1]):
            if m := inner(a, "mul"):
                return Op("fma", (*m.args, c))
            if m := inner(a, "dtanh"):
                return Op("dtanh_add", (*m.args, c))
    elif op.name == "sub":
        a, c = op.args
        if m := inner(c, "mul"):
            return Op("fnma", (*m.args, a))
        if m := inner(a, "mul"):
            return Op("fms", (*m.args, c))
    elif op.name in ("tanh", "sigmoid"):
        if m := inner(op.args[0], "fma"):
            return Op(f"{op.name}_fma", m.args)
    elif op.name == "mul":
        for a, b in (op.args, op.args[::-1]):
            if m := inner(b, "tanh"):
                return Op("mul_tanh", (a, m.args[0]))
    elif op.name in ("dsigmoid", "dtanh"):
        if m := inner(op.args[0], "mul"):
            return Op(f"mul_{op.name}", (*m.args, op.args[1]))
        if op.name == "dtanh" and (m := inner(op.args[0], "add")):
            return Op("add_dtanh", (*m.args, op.args[1]))
    return None


def _lerp(op: Op, inner, ops: list[Op], n: int) -> Op | None:
    # (1 - u) * a + u * b = a + u * (b - a); the two products stand in any order.
    if op.name != "add":
        return None
    for first, second in (op.args, op.args[::-1]):
        m, k = inner(first, "mul"), inner(second, "mul")
        if m is None or k is None:
            continue
        for rest, a in (m.args, m.args[::-1]):
            flip = ops[rest - n] if rest >= n else None
            if flip is None or flip.name != "affine" or flip.consts != (-1.0, 1.0):
                continue
            u = flip.args[0]
            if u in k.args:
                b = k.args[1] if k.args[0] == u else k.args[0]
                return Op("lerp", (u, b, a))
    return None


def arity(name: str) -> tuple[int, int]:
    """How many values and how many constants an operation of an optimised tape takes."""
    return FUSED[name] if name in FUSED else OPS[name]
