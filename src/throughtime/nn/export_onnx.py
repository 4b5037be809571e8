"""From a traced program with our operator to an ONNX model: LSTM, GRU and RNN by their names, other cells as a Scan."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import onnxscript
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from throughtime.engine.tape import Op, Tape, loads
from throughtime.nn.export_check import Runner
from throughtime.nn.export_torch import OURS, calls_of, classic, wanted_of

OPSET = 18
"""Version of the ONNX operations that are used."""
Value = Any  # of onnx_ir


def to_onnx(exported: ExportedProgram, inputs: Sequence[str], outputs: Sequence[str]) -> ir.Model:
    """The ONNX model of a traced program, its inputs and outputs flat and in order, under these names."""
    wanted = iter([wanted_of(node) for node in calls_of(exported)])
    number = iter(range(10**6))

    def translate(program, x, W, U, b, units, matrices, states, lengths, reverse, backend, memory, shown):  # type: ignore[no-untyped-def]
        write = Writer(x.dtype, f"unroll{next(number)}")
        kind = classic(program, next(wanted))
        if kind and x.dtype == ir.DataType.FLOAT:  # onnxruntime has those of ONNX in float32 only
            found = _layer(write, kind, x, W, U, b, states, bool(reverse))
        else:
            found = _scan(write, loads(program), x, W, U, b, [*units, *matrices], list(states), bool(reverse))
        # The operations by name (onnxscript.opset18) know no Scan with a number of results chosen here.
        onnxscript.evaluator.default().nodes.extend(write.nodes)  # type: ignore[attr-defined]
        return found

    program = torch.onnx.export(
        exported, dynamo=True, opset_version=OPSET, verbose=False, custom_translation_table={OURS: translate},
        input_names=list(inputs), output_names=list(outputs),
    )  # fmt: skip
    assert program is not None
    return program.model


def serialised(model: ir.Model, sizes: Mapping[str, str], metadata: Mapping[str, str]) -> bytes:
    """The model as the bytes of a file, its free sizes under these names."""
    values = [*model.graph.inputs, *model.graph.outputs]
    values += [v for node in model.graph.all_nodes() for v in node.outputs]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([_size(n, sizes) for n in value.shape])
    model.metadata_props.update(metadata)
    model.producer_name, model.doc_string = "throughtime", None
    return ir.to_proto(model).SerializeToString()


def _size(n: Any, sizes: Mapping[str, str]) -> int | str | None:
    text = n if isinstance(n, int) else n.value
    if isinstance(text, str):
        return int(text) if text.isdigit() else sizes.get(text, text)
    return text


def session(content: bytes) -> Runner:
    """An ONNX model run by onnxruntime, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    running = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [place.name for place in running.get_inputs()]

    def run(args: tuple) -> list[Tensor]:
        given = [v.contiguous().numpy() for v in pytree.tree_leaves(args)]
        return [torch.from_numpy(np.array(v)) for v in running.run(None, dict(zip(names, given, strict=True)))]

    return run


class Writer:
    """Collects the nodes of a graph; names begin with `prefix`, for no two in a model may be the same."""

    def __init__(self, dtype: Any, prefix: str) -> None:
        self.dtype, self.prefix, self.nodes = dtype, prefix, list[ir.Node]()

    def many(self, results: int, kind: str, *inputs: Value | None, **attributes: Any) -> list[Value]:
        """Add an operation with several results."""
        node = ir.node(kind, list(inputs), attributes, num_outputs=results)
        for k, value in enumerate(node.outputs):
            value.name = f"{self.prefix}_{len(self.nodes)}_{k}"
        node.name = f"{self.prefix}_{len(self.nodes)}"
        self.nodes.append(node)
        return list(node.outputs)

    def __call__(self, kind: str, *inputs: Value | None, **attributes: Any) -> Value:
        """Add an operation; its result."""
        return self.many(1, kind, *inputs, **attributes)[0]

    def whole(self, *numbers: int) -> Value:
        """Constant whole numbers [n]."""
        return self("Constant", value=ir.tensor(list(numbers), dtype=ir.DataType.INT64))

    def number(self, value: float) -> Value:
        """A constant number of the graph's own dtype."""
        return self("Constant", value=ir.tensor(np.asarray(value, dtype=self.dtype.numpy())))

    def part(self, v: Value, begin: int, end: int, axis: int) -> Value:
        """v[begin:end] along an axis."""
        return self("Slice", v, self.whole(begin), self.whole(end), self.whole(axis))


def _layer(
    write: Writer, kind: str, x: Value, W: Value, U: Value, b: Value, states: Sequence[Value], reverse: bool
) -> list[Value]:
    """The operation of ONNX for one of torch's layers; its gates stand in another order."""
    order = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}.get(kind, (0,))  # ONNX: i o f c; z r h
    H, one = int(states[0].shape[1]), write.whole(0)

    def ordered(v: Value) -> Value:
        parts = [write.part(v, k * H, (k + 1) * H, 0) for k in order]
        return parts[0] if len(parts) == 1 else write("Concat", *parts, axis=0)

    first = ordered(b)
    second = write("Sub", first, first)
    if kind == "gru":  # torch's second bias is that of the candidate's recurrent product
        second = write("Concat", write.part(second, 0, 2 * H, 0), write.part(b, 3 * H, 4 * H, 0), axis=0)
    given = [write("Unsqueeze", v, one) for v in (ordered(W), ordered(U), write("Concat", first, second, axis=0))]
    begins = [write("Unsqueeze", s, one) for s in states]
    options: dict[str, Any] = {"hidden_size": H, "direction": "reverse" if reverse else "forward"}
    if kind == "gru":
        options["linear_before_reset"] = 1
    if kind.startswith("rnn"):
        options["activations"] = ["Tanh" if kind == "rnn_tanh" else "Relu"]
    name = {"lstm": "LSTM", "gru": "GRU"}.get(kind, "RNN")
    y, *last = write.many(1 + len(states), name, x, *given, None, *begins, **options)
    shown = write("Squeeze", y, write.whole(1))
    # Nobody asks for the other states at every step (`classic`); something must stand in their places.
    places = [write("Identity", shown) for _ in states[1:]]
    return [shown, *places, *(write("Squeeze", s, one) for s in last)]


def _scan(
    write: Writer, tape: Tape, x: Value, W: Value, U: Value, b: Value, weights: list[Value], states: list[Value],
    reverse: bool,
) -> list[Value]:  # fmt: skip
    """A Scan over the traced step; the products with the input are one product before it."""
    net = write("MatMul", x, write("Transpose", W, perm=[1, 0]))
    across = None
    if any(column.h is not None for column in tape.columns):
        across = write("Transpose", U, perm=[1, 0])
    H, C = int(b.shape[0]) // len(tape.columns), len(tape.columns)
    biases = [write.part(b, k * H, (k + 1) * H, 0) for k in range(C)]
    body = _body(Writer(x.dtype, f"{write.prefix}_step"), tape, H, states, across, biases, weights)
    S, direction = len(states), int(reverse)
    out = write.many(
        2 * S, "Scan", *states, net, body=body, num_scan_inputs=1, scan_input_directions=[direction],
        scan_output_directions=[direction] * S,
    )  # fmt: skip
    return [*out[S:], *out[:S]]


def _body(
    write: Writer, tape: Tape, H: int, states: Sequence[Value], across: Value | None, biases: list[Value],
    weights: list[Value],
) -> ir.Graph:  # fmt: skip
    """One step as a graph: the old states and x_t W^T in; the new states, and these again to be shown, out."""
    kind = ir.TensorType(write.dtype)
    old = [ir.Value(name=f"{write.prefix}_s{k}", type=kind, shape=s.shape) for k, s in enumerate(states)]
    x = ir.Value(name=f"{write.prefix}_net", type=kind)
    product = None if across is None else write("MatMul", old[0], across)
    z = []
    for column, value in zip(tape.columns, biases, strict=True):
        if column.x is not None:
            value = write("Add", write.part(x, column.x * H, (column.x + 1) * H, 1), value)
        if column.h is not None:
            value = write("Add", value, write.part(product, column.h * H, (column.h + 1) * H, 1))
        z.append(value)
    values = dict(enumerate([*z, *old, *weights]))
    for number, op in enumerate(tape.ops, len(values)):
        values[number] = _operation(write, op, [values[a] for a in op.args])
    # Spread over the batch, for a bias alone has none.
    new = [write("Expand", values[o.values[0]], write("Shape", s)) for o, s in zip(tape.outputs, old, strict=True)]
    shown = [write("Identity", v) for v in new]
    for value, state in zip([*new, *shown], [*old, *old], strict=True):
        value.shape, value.type = state.shape, kind
    return ir.Graph([*old, x], [*new, *shown], nodes=write.nodes, opset_imports={"": OPSET}, name=write.prefix)


_SAME = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "reciprocal": "Reciprocal", "sqrt": "Sqrt", "exp": "Exp",
    "log": "Log", "sin": "Sin", "cos": "Cos", "erf": "Erf", "abs": "Abs", "sign": "Sign", "tanh": "Tanh",
    "sigmoid": "Sigmoid", "relu": "Relu", "softplus": "Softplus", "maximum": "Max", "minimum": "Min",
    "stop": "Identity", "clip_grad": "Identity", "linear_t": "MatMul",
}  # fmt: skip


def _operation(write: Writer, op: Op, args: list[Value]) -> Value:
    """One operation of a tape."""
    if op.name in _SAME:
        return write(_SAME[op.name], *args)
    return _OTHERS[op.name](write, *args, *op.consts)


def _affine(write: Writer, a: Value, k: float, c: float) -> Value:
    product = a if k == 1 else write("Mul", a, write.number(k))
    return product if c == 0 else write("Add", product, write.number(c))


def _clamp(write: Writer, a: Value, low: float, high: float) -> Value:
    if low > -math.inf:
        a = write("Max", a, write.number(low))
    return write("Min", a, write.number(high)) if high < math.inf else a


def _heaviside(write: Writer, a: Value, at_zero: float) -> Value:
    above = write("Greater", a, write.number(0.0))
    ones = write("Where", above, write.number(1.0), write.number(0.0))
    return write("Where", write("Equal", a, write.number(0.0)), write.number(at_zero), ones)


def _select(write: Writer, mask: Value, a: Value, b: Value) -> Value:
    return write("Where", write("Equal", mask, write.number(0.0)), b, a)


def _mean(write: Writer, a: Value) -> Value:
    axes = write.whole(-1)
    return write("Expand", write("ReduceMean", a, axes, keepdims=1), write("Shape", a))


def _linear(write: Writer, a: Value, m: Value) -> Value:
    return write("MatMul", a, write("Transpose", m, perm=[1, 0]))


def _dsigmoid(write: Writer, a: Value, y: Value) -> Value:
    return write("Mul", write("Mul", a, y), write("Sub", write.number(1.0), y))


def _dtanh(write: Writer, a: Value, y: Value) -> Value:
    return write("Mul", a, write("Sub", write.number(1.0), write("Mul", y, y)))


def _power(write: Writer, a: Value, k: float) -> Value:
    return write("Pow", a, write.number(k))


_OTHERS: dict[str, Callable[..., Value]] = {
    "affine": _affine, "power": _power, "clamp": _clamp, "heaviside": _heaviside, "select": _select, "mean": _mean,
    "linear": _linear, "dsigmoid": _dsigmoid, "dtanh": _dtanh,
}  # fmt: skip
