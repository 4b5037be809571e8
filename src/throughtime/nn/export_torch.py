"""From a traced program with our operator to one of torch's own operations: what a .pt2 file holds."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx

from throughtime.cells import GRU, LSTM, Cell, Simple
from throughtime.engine import interpret
from throughtime.engine.tape import Tape, loads
from throughtime.engine.trace import program
from throughtime.errors import BackendError

OURS = torch.ops.throughtime.infer.default
_ATEN = torch.ops.aten
_STACKS: dict[str, Any] = {
    "lstm": _ATEN.lstm.input,
    "gru": _ATEN.gru.input,
    "rnn_tanh": _ATEN.rnn_tanh.input,
    "rnn_relu": _ATEN.rnn_relu.input,
}
_CLASSIC: dict[str, Cell] = {"lstm": LSTM(), "gru": GRU(), "rnn_tanh": Simple("tanh"), "rnn_relu": Simple("relu")}


def classic(text: str, wanted: Sequence[bool]) -> str | None:
    """Which of torch's own layers runs a program: lstm, gru, rnn_tanh, rnn_relu; None where none does.

    wanted: of which states the values at every step are asked for; those layers show the first one only.
    """
    if any(wanted[1:]):
        return None
    return next((name for name, cell in _CLASSIC.items() if program(cell) == text), None)


def wanted_of(node: fx.Node) -> list[bool]:
    """Of which states somebody reads the values at every step, from a call of our operator."""
    states = len(node.args[7])  # type: ignore[arg-type]
    read = {user.args[1] for user in node.users if user.target is operator.getitem and user.users}
    return [k in read for k in range(states)]


def calls_of(exported: ExportedProgram) -> list[fx.Node]:
    """The calls of our operator; raises BackendError for one that no file can hold."""
    found = [node for node in exported.graph.nodes if node.target is OURS]
    for node in found:
        if node.args[8] is not None:
            raise BackendError("a packed batch cannot be exported; give the model sequences of one length")
    return found


def to_torch(exported: ExportedProgram) -> ExportedProgram:
    """The program with each call of our operator replaced, in place: by one of torch's layers where there is one for
    the cell, else by torch's scan over the cell's step."""
    graph = exported.graph_module.graph
    for number, node in enumerate(calls_of(exported)):
        mode = node.meta["val"][0].fake_mode
        with graph.inserting_before(node), mode, torch.no_grad():
            values = _replacement(exported.graph_module, _Emitter(graph), node, f"step_{number}")
        for user in list(node.users):
            value = values[user.args[1]]  # type: ignore[index]
            if value is not None:
                user.replace_all_uses_with(value)
                exported.graph_signature.replace_all_uses(user.name, value.name)
            graph.erase_node(user)
        graph.erase_node(node)
    exported.graph_module.recompile()
    return exported


class _Emitter:
    """Adds calls to a graph, each with the fake value that it will have."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph

    def __call__(self, target: Any, *args: Any) -> fx.Node:
        plain = fx.map_arg(args, lambda node: node.meta["val"])
        return self.given(target(*plain), target, *args)

    def given(self, value: Any, target: Any, *args: Any) -> fx.Node:
        """A call whose value is known already."""
        node = self.graph.call_function(target, args)
        node.meta["val"] = value
        return node

    def item(self, node: fx.Node, number: int) -> fx.Node:
        """One of several results of a call."""
        return self.given(node.meta["val"][number], operator.getitem, node, number)


def _replacement(module: fx.GraphModule, emit: _Emitter, node: fx.Node, name: str) -> list[fx.Node | None]:
    """What stands for each result of a call of our operator: the states at every step, then the last ones."""
    text, x, W, U, b, units, matrices, states, _, reverse = node.args[:10]
    assert isinstance(text, str) and isinstance(states, list | tuple)
    kind = classic(text, wanted_of(node))
    below = emit(_ATEN.flip.default, x, [0]) if reverse else x
    if kind:
        sequences, finals = _layer(emit, kind, node, below, W, U, b, states)
    else:
        weights = [*units, *matrices]  # type: ignore[misc]
        sequences, finals = _scan(module, emit, name, loads(text), below, W, U, b, weights, list(states))
    if reverse:
        sequences = [None if s is None else emit(_ATEN.flip.default, s, [0]) for s in sequences]
    return [*sequences, *finals]


def _layer(
    emit: _Emitter, kind: str, node: fx.Node, x: Any, W: Any, U: Any, b: Any, states: Sequence[Any]
) -> tuple[list[fx.Node | None], list[fx.Node]]:
    """One of torch's layers; the value that it will have is known from our operator, whose T and B are free."""
    H = states[0].meta["val"].shape[1]
    if kind == "gru":  # torch's second bias is that of the candidate's recurrent product
        first, last = emit(_ATEN.slice.Tensor, b, 0, 0, 3 * H), emit(_ATEN.slice.Tensor, b, 0, 3 * H, 4 * H)
        second = emit(
            _ATEN.cat.default, [emit(_ATEN.zeros_like.default, emit(_ATEN.slice.Tensor, b, 0, 0, 2 * H)), last]
        )
    else:
        first, second = b, emit(_ATEN.zeros_like.default, b)
    begins = [emit(_ATEN.unsqueeze.default, s, 0) for s in states]
    known = node.meta["val"]
    value = (known[0], *(v.unsqueeze(0) for v in known[len(states) :]))
    rest = (True, 1, 0.0, False, False, False)  # with biases, one layer, no dropout, no training, one direction, [T, B]
    done = emit.given(value, _STACKS[kind], x, begins if kind == "lstm" else begins[0], [W, U, first, second], *rest)
    finals = [emit(_ATEN.squeeze.dim, emit.item(done, 1 + k), 0) for k in range(len(states))]
    return [emit.item(done, 0), *([None] * (len(states) - 1))], finals


def _scan(
    module: fx.GraphModule, emit: _Emitter, name: str, tape: Tape, x: Any, W: Any, U: Any, b: Any,
    weights: list[Any], states: list[Any],
) -> tuple[list[fx.Node | None], list[fx.Node]]:  # fmt: skip
    """torch's scan: all input products at once, then the traced step over time."""
    net = emit(_ATEN.linear.default, x, W)
    S = len(states)

    def step(*values: Tensor) -> tuple[Tensor, ...]:
        new = net_inputs_and_step(tape, values[S], values[S + 1], values[S + 2], values[S + 3 :], values[:S])
        return (*new, *(s.clone() for s in new))

    outer = [*states, net, U, b, *weights]
    fakes = [v.meta["val"] for v in outer]
    fakes[S] = fakes[S][0]
    inner = make_fx(step)(*fakes)
    module.register_module(name, inner)
    place = emit.graph.get_attr(name)
    known = [v.new_empty(v.shape) for v in fakes[:S]]
    value = (*known, *(v.new_empty((net.meta["val"].shape[0], *v.shape)) for v in known))
    done = emit.given(value, torch.ops.higher_order.scan, place, states, [net], (U, b, *weights))
    return [emit.item(done, S + k) for k in range(S)], [emit.item(done, k) for k in range(S)]


def net_inputs_and_step(
    tape: Tape, x: Tensor, U: Tensor, b: Tensor, weights: Sequence[Tensor], states: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The new states from the input products x [B, G*H] of one step, as `engine.reference` has them."""
    H = b.shape[0] // len(tape.columns)
    recurrent = F.linear(states[0], U) if any(c.h is not None for c in tape.columns) else None
    z = []
    for k, column in enumerate(tape.columns):
        value = b[k * H : (k + 1) * H].expand(x.shape[0], H)
        if column.x is not None:
            value = value + x[:, column.x * H : (column.x + 1) * H]
        if column.h is not None and recurrent is not None:
            value = value + recurrent[:, column.h * H : (column.h + 1) * H]
        z.append(value)
    new = interpret.run(tape, [*z, *states, *weights])
    return tuple(v.expand(x.shape[0], v.shape[-1]) for (v,) in new)
