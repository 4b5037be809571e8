"""Initialisers of the gates' biases, in place: the forget gate opened, and chrono, for a wanted span of time."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn

from throughtime import cells
from throughtime.cures.changes import Change, Changes
from throughtime.cures.clip import is_number
from throughtime.cures.init import draw, fitting, parameter
from throughtime.diagnosis.parts import Part
from throughtime.errors import ConfigError

# The gate that keeps the old state, and the one that lets the new in, where that is another gate.
KEEPS: dict[type, tuple[str, str | None]] = {
    cells.LSTM: ("f", "i"),
    cells.ProjectedLSTM: ("f", "i"),
    cells.PeepholeLSTM: ("f", "i"),
    cells.GRU: ("u", None),
    cells.GRUResetBefore: ("u", None),
}


@torch.no_grad()
def forget_gate_bias_(model: nn.Module, value: float = 1.0, *, gate: str | None = None) -> Changes:
    """Sets the bias of the gate that keeps the memory, in every layer and direction (Gers 2000; Jozefowicz 2015).

        f = sigmoid(value) at the start;   what is carried halves in ln 2 / ln(1 + e^-value) steps

    torch adds two bias vectors: bias_ih is set to `value` and bias_hh to 0, so that their SUM is `value`. The gate is f
    of an LSTM and u of a GRU (torch's z), h_t = (1-u) n + u h_{t-1}. With value 1 the half-life is 2.2 steps, with 5
    it is 103.

    gate: the name of the gate for a cell of your own. Raises ConfigError, before anything is changed, for a layer
    without such a gate or without biases.
    """
    if not is_number(value):
        raise ConfigError(f"value, the bias, must be a finite number; came {value!r}")
    found = fitting(model, lambda p: _gate(p, gate) is not None, f"has no gate {gate or 'that keeps its memory'}")
    _need_bias(found)
    made = []
    for part in found:
        name = _gate(part, gate)
        assert name is not None
        _set(part, name, torch.full((part.H,), float(value)))
        said = f"sum of the biases {value:g}, half-life {half_life(value):.3g} steps"
        made.append(Change(f"{part.where('bias_ih')}[{name}]", said))
    return Changes("Forget gate bias", tuple(made))


@torch.no_grad()
def chrono_(model: nn.Module, longest: float, *, generator: Generator | None = None) -> Changes:
    """Chrono initialisation: the units' memories are spread over 2 .. `longest` steps (Tallec & Ollivier 2018).

        b_keep = ln tau,  tau ~ U(1, longest - 1), one a unit;   b_in = -b_keep   (LSTM)

    so that at the start a unit keeps f = tau / (1 + tau) a step: 1/(1-f) = 1 + tau steps of memory, half-life
    ln 2 / ln(1 + 1/tau). For a GRU the gate u (torch's z) takes b_keep, and 1 - u lets the new in. The bias is set as
    a sum: bias_ih carries it, bias_hh is 0. Weights and the other biases stay as they are.

    longest: the longest dependency that is looked for, T_max, in steps; above 2.
    Raises ConfigError, before anything is changed, for other cells and for layers without biases.
    """
    if not is_number(longest) or not longest > 2:
        raise ConfigError(f"longest must be above 2 steps, the span of the wanted memory; came {longest!r}")
    found = fitting(model, lambda p: type(p.cell) in KEEPS, "has no gates that chrono initialisation is made for")
    _need_bias(found)
    made = []
    for part in found:
        keep, enter = KEEPS[type(part.cell)]
        b = torch.empty(part.H, dtype=torch.float64)
        draw(b, lambda v: v.uniform_(1.0, longest - 1.0, generator=generator).log_(), generator)
        _set(part, keep, b)
        spread = f"ln U(1, {longest - 1:g}), half-lives {half_life(b.min().item()):.3g} to "
        made.append(Change(f"{part.where('bias_ih')}[{keep}]", f"{spread}{half_life(b.max().item()):.3g} steps"))
        if enter is not None:
            _set(part, enter, -b)
            made.append(Change(f"{part.where('bias_ih')}[{enter}]", f"minus that of {keep}"))
    return Changes(f"Chrono initialisation for {longest:g} steps", tuple(made))


def half_life(bias: float) -> float:
    """Steps in which what a gate of this net input keeps falls to one half: ln 2 / ln(1 + e^-bias)."""
    shrink = math.log1p(math.exp(-bias)) if bias > -700 else -bias
    return math.log(2) / shrink if shrink > 0 else math.inf


def _gate(part: Part, gate: str | None) -> str | None:
    if gate is not None:
        return gate if gate in part.cell.gates else None
    return KEEPS[type(part.cell)][0] if type(part.cell) in KEEPS else None


def _need_bias(found: list[Part]) -> None:
    for part in found:
        if "bias_ih" not in part.parameters:
            raise ConfigError(
                f"{part.where()} ({part.kind}) was made with bias=False; its gates have no bias to set. "
                "Nothing was changed"
            )


def _set(part: Part, gate: str, bias: Tensor) -> None:
    """The sum of the two biases of one gate: the first carries it."""
    parameter(part, "bias_ih", gate).copy_(bias)
    if "bias_hh" in part.parameters and gate in part.cell.recurrent_gates:
        parameter(part, "bias_hh", gate).zero_()
