"""From a cell's `step` to its tape: the step is called once with symbols, and what it did is written down."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from throughtime.cells import Cell
from throughtime.engine.tape import Builder, Input, Output, Tape, loads
from throughtime.errors import CellError

Value = int | float  # a value number on the tape (as int), or a plain number (as float)


@torch.compiler.assume_constant_result
def program(cell: Cell) -> str:
    """The tape of a cell as text, traced on first use and kept with the cell."""
    if cell.program is None:
        cell.program = trace(cell).dumps()
    return cell.program


def tape_of(cell: Cell) -> Tape:
    """The tape of a cell, traced on first use."""
    return loads(program(cell))


def inputs_of(cell: Cell) -> tuple[Input, ...]:
    """What a step reads, in order: net inputs, old states, per-unit weights, matrices."""
    matrices = [f"U_{g}" for g in cell.inside] + list(cell.matrices)
    return (
        *(Input("z", c.name) for c in cell.columns),
        *(Input("s", n) for n in cell.states),
        *(Input("w", n) for n in cell.units),
        *(Input("m", n) for n in matrices),
    )


def step_of(cell: Cell, values: Sequence[Any]) -> tuple[Any, ...]:
    """Calls `cell.step` on values in the order of `inputs_of`; the new states as a tuple."""
    spaces: dict[str, SimpleNamespace] = {k: SimpleNamespace() for k in "zsw"}
    for inp, value in zip(inputs_of(cell), values, strict=True):
        setattr(spaces["w" if inp.kind == "m" else inp.kind], inp.name, value)
    try:
        out = cell.step(spaces["z"], spaces["s"], spaces["w"])
    except AttributeError as err:
        if not isinstance(err.obj, SimpleNamespace):
            raise
        letter = next(k for k, space in spaces.items() if space is err.obj)
        what = {"z": "net inputs", "s": "states", "w": "weights"}[letter]
        raise CellError(
            f"{cell!r}: step reads {letter}.{err.name}, but its {what} are "
            f"{', '.join(vars(err.obj)) or 'none'}; name it in the class or correct the step"
        ) from None
    out = tuple(out) if isinstance(out, tuple | list) else (out,)
    if len(out) != len(cell.states):
        raise CellError(
            f"{cell!r}: step must return its states {tuple(cell.states)}, in this order; "
            f"it returned {len(out)} value(s)"
        )
    return out


def trace(cell: Cell) -> Tape:
    """The tape of a cell's step. Raises CellError that names what cannot be traced, and the way out.

    The step must be element-wise over hidden units: the functions in `FUNCTIONS`, the mean over units
    (`v.mean(-1, keepdim=True)`) and products with the cell's own matrices (`linear(v, w.U_n)`). Constants are
    Python numbers; a parameter of the cell is named in `units`, one number a unit.
    """
    if not cell.gates or not cell.states:
        raise CellError(f"{cell!r} must name at least one gate and one state; it has {cell.gates} and {cell.states}")
    try:
        inspect.signature(cell.step).bind(None, None, None)
    except TypeError:
        raise CellError(
            f"{cell!r}: step is called as step(z, s, w) with the net inputs, the old states and the weights, read by "
            f"name; yours is step{inspect.signature(cell.step)}"
        ) from None
    inputs = inputs_of(cell)
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    proxies = [fx.Proxy(graph.placeholder(f"{i.kind}_{i.name}"), tracer) for i in inputs]
    try:
        out = step_of(cell, proxies)
    except fx.proxy.TraceError as err:
        raise CellError(
            f"{cell!r}: step decides on the value of a tensor ({str(err).splitlines()[0]}); "
            "write the choice as torch.where(condition, a, b)"
        ) from None
    build = Builder(inputs)
    number: dict[fx.Node, Any] = {p.node: i for i, p in enumerate(proxies)}
    for node in graph.nodes:
        if node.op != "placeholder":
            number[node] = _emit(cell, build, node, number)
    outputs = []
    for name, value in zip(cell.states, out, strict=True):
        if not isinstance(value, fx.Proxy):
            raise CellError(f"{cell!r}: step returned {value!r} for the state {name}; expected a tensor [B, H]")
        v = number[value.node]
        if not isinstance(v, int):
            raise CellError(f"{cell!r}: step returned a constant for the state {name}; expected a tensor [B, H]")
        outputs.append(Output("s", name, (v,)))
    return Tape(cell.columns, inputs, tuple(build.ops), tuple(outputs)).pruned()


def _emit(cell: Cell, build: Builder, node: fx.Node, number: dict[fx.Node, Any]) -> Value:
    # operator.iadd and friends: the step writes v += 1, which torch would do in place and fx does not.
    target = node.target if node.op == "call_function" else getattr(torch.Tensor, str(node.target), node.target)
    handler = FUNCTIONS.get(target)
    where = f"{cell!r}: step uses {_spelled(node)}"
    if handler is None:
        if getattr(target, "__name__", "") == "getitem":
            raise CellError(f"{where}, an index; units cannot be picked apart, each acts on itself only")
        names = sorted({_function_name(f) for f in FUNCTIONS} - {""})
        raise CellError(
            f"{where}, which is not an element-wise operation the engine knows; it knows {', '.join(names)}. "
            'To run the step as it is, in plain torch, choose backend="reference"'
        )

    def value(a: Any) -> Any:
        if isinstance(a, fx.Node):
            return number[a]
        if isinstance(a, bool | int | float):
            return float(a)
        if isinstance(a, torch.Tensor):
            raise CellError(
                f"{where} with a tensor of its own {tuple(a.shape)}; a constant must be a Python number, "
                "a parameter must be named in units (one number a hidden unit)"
            )
        return a

    args = [value(a) for a in node.args]
    kwargs = {k: value(a) for k, a in node.kwargs.items()}
    try:
        return handler(build, *args, **kwargs)
    except TypeError as err:
        raise CellError(f"{where} in a way the engine does not know ({err})") from None
    except CellError as err:
        raise CellError(f"{where}: {err}") from None


def _function_name(f: Any) -> str:
    name = getattr(f, "__name__", "")
    return name if not name.startswith("_") else ""


def _spelled(node: fx.Node) -> str:
    return f"{getattr(node.target, '__name__', node.target)}()"


# --- what each torch function becomes -------------------------------------------------------------------------


def is_number(a: Any) -> bool:
    return isinstance(a, float)


def _affine(t: Builder, a: Value, k: float, c: float) -> Value:
    return k * a + c if is_number(a) else t.emit("affine", int(a), consts=(k, c))


def _neg(t: Builder, a: Value) -> Value:
    return _affine(t, a, -1.0, 0.0)


def _add(t: Builder, a: Value, b: Value, *, alpha: float = 1.0) -> Value:
    if alpha != 1:
        b = _affine(t, b, alpha, 0.0)
    if is_number(a):
        return _affine(t, b, 1.0, a)
    return _affine(t, a, 1.0, b) if is_number(b) else t.emit("add", int(a), int(b))


def _sub(t: Builder, a: Value, b: Value, *, alpha: float = 1.0) -> Value:
    if alpha != 1:
        b = _affine(t, b, alpha, 0.0)
    if is_number(a):
        return _affine(t, b, -1.0, a)
    return _affine(t, a, 1.0, -b) if is_number(b) else t.emit("sub", int(a), int(b))


def _mul(t: Builder, a: Value, b: Value) -> Value:
    if is_number(a):
        return _affine(t, b, a, 0.0)
    return _affine(t, a, b, 0.0) if is_number(b) else t.emit("mul", int(a), int(b))


def _div(t: Builder, a: Value, b: Value) -> Value:
    if is_number(b):
        return _affine(t, a, 1.0 / b, 0.0)
    if is_number(a):
        return _affine(t, t.emit("reciprocal", int(b)), a, 0.0)
    return t.emit("div", int(a), int(b))


def _pow(t: Builder, a: Value, k: Value) -> Value:
    if not is_number(k) or is_number(a):
        raise CellError("a power needs a plain number as its exponent")
    return t.emit("mul", int(a), int(a)) if k == 2 else t.emit("power", int(a), consts=(k,))


def _unary(name: str) -> Callable:
    def handler(t: Builder, a: int) -> Value:
        return t.emit(name, a)

    return handler


def _pair(name: str) -> Callable:
    def handler(t: Builder, a: Value, b: Value) -> Value:
        if is_number(a) or is_number(b):
            raise CellError("both operands must be tensors; for a number use torch.clamp")
        return t.emit(name, int(a), int(b))

    return handler


def _compare(at_zero: float, swap: bool) -> Callable:
    def handler(t: Builder, a: Value, b: Value) -> Value:
        difference = _sub(t, b, a) if swap else _sub(t, a, b)
        return t.emit("heaviside", int(difference), consts=(at_zero,))

    return handler


def _where(t: Builder, mask: int, a: Value, b: Value) -> Value:
    a, b = (int(_affine(t, mask, 0.0, v)) if is_number(v) else v for v in (a, b))
    return t.emit("select", mask, int(a), int(b))


def _clamp(t: Builder, a: int, min: float | None = None, max: float | None = None) -> Value:
    low, high = -math.inf if min is None else min, math.inf if max is None else max
    if not (is_number(low) and is_number(high)):
        raise CellError("the bounds of a clamp must be plain numbers")
    return t.emit("clamp", a, consts=(low, high))


def _hardtanh(t: Builder, a: int, min_val: float = -1.0, max_val: float = 1.0, inplace: float = False) -> Value:
    return _clamp(t, a, min_val, max_val)


def _mean(t: Builder, a: int, dim: float | None = None, keepdim: float = False) -> Value:
    if dim != -1 or not keepdim:
        raise CellError("only the mean over the units is there, mean(-1, keepdim=True)")
    return t.emit("mean", a)


def _linear(t: Builder, a: int, m: int, bias: None = None) -> Value:
    if bias is not None or not isinstance(m, int) or m >= len(t.inputs) or t.inputs[m].kind != "m":
        raise CellError(
            "linear(v, M) needs one of the cell's matrices as M (an `inside` gate's U or one in `matrices`)"
        )
    return t.emit("linear", a, m)


def _relu(t: Builder, a: int, inplace: float = False) -> Value:
    return t.emit("relu", a)


def _leaky_relu(t: Builder, a: int, negative_slope: float = 0.01, inplace: float = False) -> Value:
    # max(0, a) - slope * max(0, -a), which has torch's derivative at 0: the slope.
    below = t.emit("relu", int(_neg(t, a)))
    mask = t.emit("heaviside", a, consts=(0,))
    return t.emit("select", mask, a, int(_affine(t, below, -negative_slope, 0.0)))


def _silu(t: Builder, a: int, inplace: float = False) -> Value:
    return t.emit("mul", a, t.emit("sigmoid", a))


def _softplus(t: Builder, a: int, beta: float = 1.0, threshold: float = 20.0) -> Value:
    return _affine(t, t.emit("softplus", int(_affine(t, a, beta, 0.0))), 1 / beta, 0.0)


def _gelu(t: Builder, a: int, approximate: str = "none") -> Value:
    if approximate != "none":
        raise CellError("only the exact gelu is there, not its tanh approximation")
    cdf = _affine(t, t.emit("erf", int(_affine(t, a, math.sqrt(0.5), 0.0))), 0.5, 0.5)
    return t.emit("mul", a, int(cdf))


FUNCTIONS: dict[Any, Callable] = {}


def _register(handler: Callable, *functions: Any) -> None:
    for f in functions:
        FUNCTIONS[f] = handler


def _everywhere(name: str) -> list[Any]:
    # The same function as torch.<name>, Tensor.<name> and, where there is one, F.<name> and operator.<name>.
    places = (torch, torch.Tensor, F, operator)
    return [f for f in (getattr(p, name, None) for p in places) if f is not None]


_register(_add, *_everywhere("add"), operator.iadd)
_register(_sub, *_everywhere("sub"), *_everywhere("subtract"), operator.isub)
_register(lambda t, a, b: _sub(t, b, a), *_everywhere("rsub"))
_register(_mul, *_everywhere("mul"), *_everywhere("multiply"), operator.imul)
_register(
    _div,
    *_everywhere("div"),
    *_everywhere("divide"),
    *_everywhere("true_divide"),
    operator.truediv,
    operator.itruediv,
)
_register(_neg, *_everywhere("neg"), *_everywhere("negative"))
_register(_pow, *_everywhere("pow"))
_register(lambda t, a: _pow(t, a, 2.0), *_everywhere("square"))
_register(lambda t, a: a, operator.pos, *_everywhere("positive"))
_register(_relu, *_everywhere("relu"))
_register(_leaky_relu, F.leaky_relu)
_register(_silu, F.silu)
_register(_gelu, F.gelu)
_register(_softplus, F.softplus)
_register(lambda t, a: t.emit("power", a, consts=(-0.5,)), *_everywhere("rsqrt"))
_register(_clamp, *_everywhere("clamp"), *_everywhere("clip"))
_register(_hardtanh, F.hardtanh)
_register(_mean, *_everywhere("mean"))
_register(_where, torch.where, torch.Tensor.where)
FUNCTIONS[torch.Tensor.where] = lambda t, a, mask, b: _where(t, mask, a, b)
_register(_linear, F.linear)
_register(_unary("stop"), *_everywhere("detach"))
for _name in ("reciprocal", "sqrt", "exp", "log", "sin", "cos", "erf", "abs", "sign", "tanh", "sigmoid"):
    _register(_unary(_name), *_everywhere(_name))
_register(_pair("maximum"), *_everywhere("maximum"))
_register(_pair("minimum"), *_everywhere("minimum"))
for _names, _at, _swap in (
    (("gt", "greater"), 0.0, False),
    (("ge",), 1.0, False),
    (("lt", "less"), 0.0, True),
    (("le",), 1.0, True),
):
    for _name in _names:
        _register(_compare(_at, _swap), *_everywhere(_name))
