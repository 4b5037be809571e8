"""The training rules as changes of the tape: derivative clipping, and the truncated gradient of 1997."""

from __future__ import annotations

from functools import lru_cache

from throughtime.engine.tape import Builder, Op, Output, Tape


@lru_cache(maxsize=512)
def with_rule(tape: Tape, clip: float | None = None, truncated: bool = False) -> Tape:
    """The tape of a step whose derivative follows a training rule; its values are unchanged.

    clip:      derivative clipping (Graves 2013): the derivative of the loss with respect to each net input, taken
               where the whole of it stands (with peepholes and the like added), is clamped to [-clip, clip].
    truncated: the truncated gradient (Hochreiter & Schmidhuber 1997; with peepholes Gers 2002): no error flows from
               a net input back into a state, so that it leaves a memory cell only along the carousel. The product
               h_{t-1} U^T itself is cut by the backend that does it; here the products inside a step are cut, and
               what per-unit weights bring from a state into a net input.
    """
    if truncated:
        tape = _truncate(tape)
    if clip is not None:
        tape = _clip(tape, clip)
    return tape


def _clip(tape: Tape, bound: float) -> Tape:
    after = {net_input(tape, tape.number("z", name)) for name in tape.names("z")}
    return _insert(tape, after, "clip_grad", (bound,))


def net_input(tape: Tape, z: int) -> int:
    """The value at which the whole of a net input stands.

    It is z itself, or, where the step adds more to it (a peephole, a product inside the step), the sum; but never a
    sum that has z and an old state in it as they are, for that is a memory being added to.
    """
    n, users = len(tape.inputs), tape.users()
    states = {v for out in tape.outputs for v in out.values}
    old = {i for i, inp in enumerate(tape.inputs) if inp.kind == "s"}
    here = z
    while True:
        readers = users.get(here, [])
        if len(readers) != 1 or tape.ops[readers[0]].name != "add":
            return here
        op, total = tape.ops[readers[0]], n + readers[0]
        other = op.args[0] if op.args[1] == here else op.args[1]
        if other in old or other == here:
            return here
        # A sum that is itself a new state is a net input only if what joins z is a recurrent product.
        if total in states and not (other >= n and tape.ops[other - n].name == "linear"):
            return here
        here = total


def _truncate(tape: Tape) -> Tape:
    n = len(tape.inputs)
    units = {i for i, inp in enumerate(tape.inputs) if inp.kind == "w"}
    states = {i for i, inp in enumerate(tape.inputs) if inp.kind == "s"}
    states |= {v for out in tape.outputs for v in out.values}
    matrices = {f"U_{c.name}" for c in tape.columns}
    build = Builder(tape.inputs)
    number = {i: i for i in range(n)}
    for i, op in enumerate(tape.ops):
        args = [number[a] for a in op.args]
        if op.name == "mul" and any(a in units for a in op.args):
            args = [build.emit("stop", v) if a in states else v for a, v in zip(op.args, args, strict=True)]
        if op.name == "linear" and tape.inputs[op.args[1]].name in matrices:
            args[0] = build.emit("stop", args[0])
        number[n + i] = build.emit(op.name, *args, consts=op.consts)
    outputs = tuple(Output(o.kind, o.name, tuple(number[v] for v in o.values)) for o in tape.outputs)
    return Tape(tape.columns, tape.inputs, tuple(build.ops), outputs).pruned()


def _insert(tape: Tape, after: set[int], name: str, consts: tuple[float, ...]) -> Tape:
    # Puts an operation behind some values; everything that read the value reads the operation's result.
    n = len(tape.inputs)
    build = Builder(tape.inputs)
    number: dict[int, int] = {}

    def settle(old: int, new: int) -> None:
        number[old] = build.emit(name, new, consts=consts) if old in after else new

    for i in range(n):
        settle(i, i)
    for i, op in enumerate(tape.ops):
        new = Op(op.name, tuple(number[a] for a in op.args), op.consts)
        settle(n + i, build.emit(new.name, *new.args, consts=new.consts))
    outputs = tuple(Output(o.kind, o.name, tuple(number[v] for v in o.values)) for o in tape.outputs)
    return Tape(tape.columns, tape.inputs, tuple(build.ops), outputs).pruned()
