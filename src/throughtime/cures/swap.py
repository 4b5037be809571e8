"""Swaps the cell of a model's recurrent layers, in place; what the old parameters mean in it is carried over."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from throughtime import cells
from throughtime.cells import Cell
from throughtime.cures.changes import Change, Changes
from throughtime.cures.init import fitting
from throughtime.diagnosis.parts import Part, parts
from throughtime.errors import ConfigError
from throughtime.nn.layer import StackedLayer
from throughtime.nn.recurrent import Recurrent
from throughtime.nn.stack import Rules

# What each gate of a cell does, in words that hold across cells.
#   candidate: what is to be written     keep: how much of the old stays     write: how much of the new enters
#   show: how much is shown              reset: how much of the old the candidate sees
ROLES: dict[type, dict[str, str]] = {
    cells.Simple: {"h": "candidate"},
    cells.PreActivation: {"s": "candidate"},
    cells.AdditiveState: {"h": "candidate"},
    cells.AdditiveStateFeedback: {"h": "candidate"},
    cells.AdditiveMemory: {"c": "candidate"},
    cells.AdditiveMemoryFeedback: {"c": "candidate"},
    cells.LSTM1997: {"i": "write", "g": "candidate", "o": "show"},
    cells.LSTM: {"i": "write", "f": "keep", "g": "candidate", "o": "show"},
    cells.PeepholeLSTM: {"i": "write", "f": "keep", "g": "candidate", "o": "show"},
    cells.GRU: {"r": "reset", "u": "keep", "n": "candidate"},
    cells.GRUResetBefore: {"r": "reset", "u": "keep", "n": "candidate"},
}
# In these the gate that keeps also lets in: new = (1 - keep).
COUPLED = (cells.GRU, cells.GRUResetBefore)


@torch.no_grad()
def swap_cell(
    model: nn.Module, to: Cell | str, *, forget_bias: float = 1.0, generator: Generator | None = None
) -> Changes:
    """Gives every recurrent layer of `model` another cell, and carries over what the old parameters mean in it.

        print(swap_cell(model, "lstm"))         # an nn.RNN becomes an LSTM, in place

    Carried, with W, U and both biases, by what a gate is for:
        candidate  the simple network's h; g of the LSTMs; n of the GRUs: what is to be written is computed as before
        keep       f of an LSTM, u of a GRU (torch's z)         write, show, reset: i, o, r, to those of the same name
        write      from a GRU, whose new part enters by 1-u: i takes u's weights with the opposite sign, for
                   1 - sigmoid(v) = sigmoid(-v)
    Peepholes are carried between equals, and are else 0, so that an LSTM stays what it was.
    New: every other gate is drawn as torch draws, U(-1/sqrt(H), 1/sqrt(H)); a new gate that keeps is opened by its
    bias, the sum of the two being `forget_bias` (Jozefowicz 2015). Biases that a layer had not (bias=False) are 0.

    A gated cell is not the simple network, so the outputs change and training goes on from there; swaps among LSTM,
    LSTM1997 and LSTM with peepholes keep their numbers as far as the gates are the same.

    The layers stay the same objects and become `throughtime.nn.Recurrent`; layers, directions, batch_first and dropout
    stay. Parameters are new: make the optimiser anew. The state may have another form: (h, c) for an LSTM, h alone for
    a simple network; a model that only uses the layer's output needs no change.

    to: a `throughtime.cells.Cell` or the name of one. Raises ConfigError, before anything is changed, for a model
    without recurrent layers, a projected state, and a loop over torch.nn.*Cell, whose state is in your hands.
    """
    cell = cells.by_name(to) if isinstance(to, str) else to
    if not isinstance(cell, Cell):
        raise ConfigError(f"to must be a throughtime.cells.Cell or the name of one; came {type(to).__name__}")
    if cell.matrices:
        raise ConfigError(f"{cell!r} has matrices of its own that nothing of the old cell could fill; build it anew")
    found = fitting(model, lambda p: p.layer is not None, "is stepped by a loop of yours, which holds its state")
    for part in found:
        if part.cell.matrices:
            raise ConfigError(
                f"{part.where()} projects its state, [P] of [H] units; only layers without proj_size swap"
            )
    made: list[Change] = []
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, nn.RNNBase | StackedLayer)]:
        made += _swap(name, layer, cell, forget_bias, generator)
    return Changes(f"Cell swapped to {cell.name}", tuple(made))


def _swap(name: str, layer: Any, cell: Cell, forget_bias: float, generator: Generator | None) -> list[Change]:
    old = parts(layer)
    some = old[0].weights.weight_ih
    rules = {rule: getattr(layer, rule) for rule in Rules._fields if hasattr(layer, rule)}
    new = Recurrent(
        cell, layer.input_size, layer.hidden_size, layer.num_layers, True, layer.batch_first, 0.0,
        bool(layer.bidirectional), getattr(layer, "skip", False), device=some.device, dtype=some.dtype, **rules,
    )  # fmt: skip
    new.dropout = float(layer.dropout)
    made = []
    for source, target in zip(old, parts(new), strict=True):
        said = _carry(source, target, forget_bias, generator)
        made.append(Change(str(source.where()) if not name else f"{name}, {_place(source)}", said))
    trained = [p.requires_grad for p in layer.parameters()]
    for p in new.parameters():
        p.requires_grad_(any(trained))
    # The object stays: who holds it, its hooks and its training mode.
    keep = vars(nn.Module()).keys() - {"_parameters"}
    state = {**vars(new), **{k: v for k, v in vars(layer).items() if k in keep}}
    vars(layer).clear()
    vars(layer).update(state)
    layer.__class__ = Recurrent
    return made


def _place(part: Part) -> str:
    return f"layer {part.layer}{', reverse' if part.reverse else ''}"


def _carry(old: Part, new: Part, forget_bias: float, generator: Generator | None) -> str:
    """Fills one layer and direction of the new stack; what was done, in words."""
    told = []
    had = {role: gate for gate, role in _roles(old.cell).items()}
    for gate, role in _roles(new.cell).items():
        if role in had:
            _take(old, had[role], new, gate, 1.0)
            told.append(f"{gate} takes {had[role]}")
        elif role == "write" and "keep" in had and isinstance(old.cell, COUPLED):
            _take(old, had["keep"], new, gate, -1.0)
            told.append(f"{gate} takes -{had['keep']}")
        else:
            opened = role == "keep"
            _draw(new, gate, forget_bias if opened else None, generator)
            told.append(f"{gate} new, bias {forget_bias:g}" if opened else f"{gate} new")
    for unit in new.cell.units:
        carried = old.parameters.get(unit) if unit in old.cell.units else None
        new.parameters[unit].copy_(torch.zeros(new.H) if carried is None else carried)
        told.append(f"{unit} {'0' if carried is None else 'carried'}")
    gone = sorted(set(_roles(old.cell)) - {had[r] for r in _roles(new.cell).values() if r in had})
    if gone:
        told.append(f"left behind: {', '.join(gone)}")
    return "; ".join(told)


def _roles(cell: Cell) -> dict[str, str]:
    # A cell of the user's own: only gates of the same name mean the same.
    return ROLES.get(type(cell), {gate: gate for gate in cell.gates})


def _take(old: Part, source: str, new: Part, gate: str, sign: float) -> None:
    for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        rows = _rows(new, kind, gate)
        if rows is None:
            continue
        value = _rows(old, kind, source)
        rows.copy_(sign * value) if value is not None else rows.zero_()
    lost = _rows(old, "bias_hh", source)
    if lost is not None and _rows(new, "bias_hh", gate) is None:
        both = _rows(new, "bias_ih", gate)
        assert both is not None
        both.add_(sign * lost)  # the new gate has one bias: it takes the sum


def _draw(new: Part, gate: str, opened: float | None, generator: Generator | None) -> None:
    for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        rows = _rows(new, kind, gate)
        if rows is None:
            continue
        if opened is not None and kind.startswith("bias"):
            rows.fill_(opened if kind == "bias_ih" else 0.0)
            continue
        device = rows.device if generator is None else generator.device
        drawn = torch.empty(rows.shape, dtype=rows.dtype, device=device)
        rows.copy_(drawn.uniform_(-new.bound, new.bound, generator=generator))


def _rows(part: Part, kind: str, gate: str) -> Tensor | None:
    gates = part.cell.recurrent_gates if kind.endswith("hh") else tuple(part.cell.gates)
    if kind not in part.parameters or gate not in gates:
        return None
    k = gates.index(gate)
    return part.parameters[kind].detach()[k * part.H : (k + 1) * part.H]
