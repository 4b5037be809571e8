"""Reverse mode on the tape: from the tape of a step to the tape of its derivative."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

from throughtime.engine.tape import Builder, Input, Op, Output, Tape


@lru_cache(maxsize=512)
def derive(tape: Tape, totals: bool = False) -> Tape:
    """The tape of the vector-Jacobian product of one step.

    Inputs: those of `tape`, then ("g", name) for every output: the gradient of the loss with respect to it.
    Operations: the forward ones that are still needed, then the reverse ones. Whatever does not depend on a "g"
    can be computed for all time steps at once, or kept from the forward pass: that is a backend's choice.
    Outputs: the gradient with respect to every "z", "s", "w" (to be summed over rows) and "m" (a pair to be
    multiplied, a^T v, and summed over rows), as far as there is one; and, for the tape of a derivative, every "g".
    With `totals` also ("total", name) for every new state: the gradient with respect to it along all paths, those
    inside the step included (c_t is also seen through h_t), which is what autograd calls c_t's gradient.
    The result is a tape again and can be derived again.
    """
    gs = [_seed_name(tape, out, k) for out in tape.outputs for k in range(len(out.values))]
    inputs = (*tape.inputs, *(Input("g", name) for name in gs))
    n, shift = len(tape.inputs), len(gs)

    def moved(v: int) -> int:  # operations move back by the number of new inputs
        return v if v < n else v + shift

    build = Builder(inputs, [Op(o.name, tuple(moved(a) for a in o.args), o.consts) for o in tape.ops])
    grad: dict[int, int] = {}
    pairs: dict[int, list[tuple[int, int]]] = {}

    def add(v: int, g: int) -> None:
        grad[v] = build.emit("add", grad[v], g) if v in grad else g

    seeds = [v for out in tape.outputs for v in out.values]
    for k, v in enumerate(seeds):
        add(moved(v), n + k)

    for i in reversed(range(len(tape.ops))):
        y = n + shift + i
        if y not in grad:
            continue
        op = build.ops[i]
        if op.name in ("linear", "linear_t"):
            a, m = op.args
            g = grad[y]
            add(a, build.emit("linear_t" if op.name == "linear" else "linear", g, m))
            pairs.setdefault(m, []).append((g, a) if op.name == "linear" else (a, g))
        else:
            RULES[op.name](build, op, y, grad[y], add)

    outputs = [
        Output(inp.kind, inp.name, (grad[i],)) for i, inp in enumerate(tape.inputs) if i in grad and inp.kind != "m"
    ]
    outputs += [Output("m", inputs[m].name, tuple(v for pair in ps for v in pair)) for m, ps in pairs.items()]
    if totals:
        outputs += [Output("total", o.name, tuple(grad[moved(v)] for v in o.values)) for o in tape.outputs]
    return Tape(tape.columns, inputs, tuple(build.ops), tuple(outputs)).pruned()


def _seed_name(tape: Tape, out: Output, k: int) -> str:
    # A step's outputs are its states, and their gradients carry the states' names.
    if out.kind == "s" and not tape.names("g"):
        return out.name
    return f"{out.kind}.{out.name}.{k}"


Rule = Callable[[Builder, Op, int, int, Callable[[int, int], None]], None]
RULES: dict[str, Rule] = {}


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def register(f: Rule) -> Rule:
        for name in names:
            RULES[name] = f
        return f

    return register


@_rule("sign", "heaviside", "stop")
def _none(t, op, y, g, add):
    pass


@_rule("affine")
def _affine(t, op, y, g, add):
    if op.consts[0] != 0:
        add(op.args[0], t.scale(g, op.consts[0]))


@_rule("add")
def _add(t, op, y, g, add):
    add(op.args[0], g)
    add(op.args[1], g)


@_rule("sub")
def _sub(t, op, y, g, add):
    add(op.args[0], g)
    add(op.args[1], t.scale(g, -1))


@_rule("mul")
def _mul(t, op, y, g, add):
    a, b = op.args
    add(a, t.emit("mul", g, b))
    add(b, t.emit("mul", g, a))


@_rule("div")
def _div(t, op, y, g, add):
    a, b = op.args
    ga = t.emit("div", g, b)
    add(a, ga)
    add(b, t.scale(t.emit("mul", ga, y), -1))


@_rule("reciprocal")
def _reciprocal(t, op, y, g, add):
    add(op.args[0], t.scale(t.emit("mul", g, t.emit("mul", y, y)), -1))


@_rule("power")
def _power(t, op, y, g, add):
    (a,), (k,) = op.args, op.consts
    if k != 0:
        add(a, t.scale(t.emit("mul", g, t.emit("power", a, consts=(k - 1,))), k))


@_rule("sqrt")
def _sqrt(t, op, y, g, add):
    add(op.args[0], t.scale(t.emit("div", g, y), 0.5))


@_rule("exp")
def _exp(t, op, y, g, add):
    add(op.args[0], t.emit("mul", g, y))


@_rule("log")
def _log(t, op, y, g, add):
    add(op.args[0], t.emit("div", g, op.args[0]))


@_rule("sin")
def _sin(t, op, y, g, add):
    add(op.args[0], t.emit("mul", g, t.emit("cos", op.args[0])))


@_rule("cos")
def _cos(t, op, y, g, add):
    add(op.args[0], t.scale(t.emit("mul", g, t.emit("sin", op.args[0])), -1))


@_rule("erf")
def _erf(t, op, y, g, add):
    a = op.args[0]
    bell = t.emit("exp", t.scale(t.emit("mul", a, a), -1))
    add(a, t.scale(t.emit("mul", g, bell), 2 / math.sqrt(math.pi)))


@_rule("abs")
def _abs(t, op, y, g, add):
    add(op.args[0], t.emit("mul", g, t.emit("sign", op.args[0])))


@_rule("tanh")
def _tanh(t, op, y, g, add):
    add(op.args[0], t.emit("dtanh", g, y))


@_rule("sigmoid")
def _sigmoid(t, op, y, g, add):
    add(op.args[0], t.emit("dsigmoid", g, y))


@_rule("relu")
def _relu(t, op, y, g, add):
    add(op.args[0], t.emit("mul", g, t.emit("heaviside", op.args[0], consts=(0,))))


@_rule("softplus")
def _softplus(t, op, y, g, add):
    add(op.args[0], t.emit("mul", g, t.emit("sigmoid", op.args[0])))


@_rule("maximum", "minimum")
def _extremum(t, op, y, g, add):
    a, b = op.args
    over = t.emit("sub", a, b) if op.name == "maximum" else t.emit("sub", b, a)
    # At a tie each side gets half, as in torch.
    ga = t.emit("mul", g, t.emit("heaviside", over, consts=(0.5,)))
    add(a, ga)
    add(b, t.emit("sub", g, ga))


@_rule("clamp")
def _clamp(t, op, y, g, add):
    (a,), (low, high) = op.args, op.consts
    if math.isfinite(low):
        g = t.emit("mul", g, t.emit("heaviside", t.emit("affine", a, consts=(1, -low)), consts=(1,)))
    if math.isfinite(high):
        g = t.emit("mul", g, t.emit("heaviside", t.emit("affine", a, consts=(-1, high)), consts=(1,)))
    add(a, g)


@_rule("select")
def _select(t, op, y, g, add):
    mask, a, b = op.args
    zero = t.emit("affine", mask, consts=(0, 0))
    add(a, t.emit("select", mask, g, zero))
    add(b, t.emit("select", mask, zero, g))


@_rule("mean")
def _mean(t, op, y, g, add):
    add(op.args[0], t.emit("mean", g))


@_rule("clip_grad")
def _clip_grad(t, op, y, g, add):
    add(op.args[0], t.emit("clamp", g, consts=(-op.consts[0], op.consts[0])))


@_rule("dsigmoid")
def _dsigmoid(t, op, y, g, add):
    a, s = op.args
    add(a, t.emit("dsigmoid", g, s))
    add(s, t.emit("mul", t.emit("mul", g, a), t.emit("affine", s, consts=(-2, 1))))


@_rule("dtanh")
def _dtanh(t, op, y, g, add):
    a, b = op.args
    add(a, t.emit("dtanh", g, b))
    add(b, t.scale(t.emit("mul", t.emit("mul", g, a), b), -2))
