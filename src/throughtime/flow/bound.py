"""The recurrent weights gate by gate, spectral radius beside largest singular value; and a simple cell's slope."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from throughtime.cells import Cell
from throughtime.engine.trace import tape_of
from throughtime.flow import drawing
from throughtime.flow.recurrence import Recurrence
from throughtime.plain import Plain

# The largest slope of each element-wise function that a simple cell may have as its activation.
SLOPES = {"tanh": 1.0, "sigmoid": 0.25, "relu": 1.0, "softplus": 1.0, "sin": 1.0, "cos": 1.0, "abs": 1.0}
SLOPES["erf"] = 2 / math.sqrt(math.pi)


@dataclass(frozen=True)
class RecurrentMatrix(Plain):
    """One block U of the recurrent weights, [H, H] (or [H, P] where the output is projected).

    spectral_radius: max |eigenvalue|: what U^n does for large n; None where U is not square.
    sigma_1:         the largest singular value, ||U||_2: what U does at most in one step.

    spectral_radius <= sigma_1, and between the two nothing is decided: torch's default initialisation of nn.RNN has
    0.577 (it contracts) and 1.155 ("may explode"). Neither is the measured decay.
    """

    gate: str
    spectral_radius: float | None
    sigma_1: float

    def plot(self, ax: Any = None) -> Any:
        """Draws spectral radius and sigma_1 side by side, and 1, with matplotlib; gives the axes.

        ax: where to draw; None for a new figure. Raises ThroughtimeError where matplotlib is missing.
        """
        ax = drawing.axes(ax)
        sizes = {"spectral radius": self.spectral_radius, "sigma_1": self.sigma_1}
        known = {name: v for name, v in sizes.items() if v is not None}
        ax.barh(list(known), list(known.values()))
        ax.axvline(1, linestyle="--", linewidth=0.8, color="0.4")
        ax.set_xlabel(f"size of U[{self.gate}]")
        return ax

    def __str__(self) -> str:
        radius = "not square" if self.spectral_radius is None else f"{self.spectral_radius:.3f}"
        return f"U[{self.gate}]: spectral radius {radius}, sigma_1 {self.sigma_1:.3f}"


def recurrent_matrices(recurrence: Recurrence) -> tuple[RecurrentMatrix, ...]:
    """Spectral radius and sigma_1 of each gate's block of weight_hh; empty for a cell without recurrent weights."""
    U, gates = recurrence.weights.weight_hh, recurrence.cell.recurrent_gates
    if U is None or not gates:
        return ()
    found = []
    for gate, block in zip(gates, U.detach().double().chunk(len(gates)), strict=True):
        square = block.shape[0] == block.shape[1]
        radius = torch.linalg.eigvals(block).abs().max().item() if square else None
        found.append(RecurrentMatrix(gate, radius, torch.linalg.matrix_norm(block, 2).item()))
    return tuple(found)


def largest_slope(cell: Cell) -> float | None:
    """g_f, the largest slope of the activation of a simple cell, h = f(U h' + W x + b) or s = U f(s') + W x + b.

    tanh 1, logistic 1/4, ReLU 1, identity 1 (Pascanu 2013). Read from the tape, so it holds for a user's own simple
    cell too. None for every other cell: their Jacobian is not diag(f') U and the bound does not hold.
    """
    tape = tape_of(cell)
    if len(cell.states) != 1 or len(tape.columns) != 1:
        return None
    z, s = tape.number("z", tape.columns[0].name), tape.number("s", cell.states[0])
    ops, out, n = tape.ops, tape.outputs[0].values[0], len(tape.inputs)
    if tape.columns[0].h is not None:
        if not ops:
            return 1.0 if out == z else None
        return SLOPES.get(ops[0].name) if len(ops) == 1 and ops[0].args == (z,) else None
    # The pre-activation form: z + (f(s) U^T), the product inside the step.
    if not ops or ops[-1].name != "add" or z not in ops[-1].args or len(ops) < 2 or ops[-2].name != "linear":
        return None
    if set(ops[-1].args) != {z, n + len(ops) - 2}:
        return None
    if len(ops) == 2:
        return 1.0 if ops[0].args[0] == s else None
    return SLOPES.get(ops[0].name) if len(ops) == 3 and ops[0].args == (s,) and ops[1].args[0] == n else None
