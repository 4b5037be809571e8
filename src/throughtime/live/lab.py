"""What the lab shows: a small network made to measure, and the gradient, the Jacobian and the gates in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from throughtime import cells
from throughtime.cells import Cell
from throughtime.errors import ConfigError, FlowError
from throughtime.flow.anatomy import anatomy, tape_values
from throughtime.flow.bound import largest_slope, recurrent_matrices
from throughtime.flow.measure import gradient_flow, recurrences
from throughtime.flow.recurrence import Recurrence
from throughtime.flow.tangent import Tangent
from throughtime.live.drawn import flow, picture
from throughtime.nn import Recurrent

INPUTS = 4  # channels of the noise that the network hears
CHOICES = {"matrix": ("gaussian", "orthogonal", "identity"), "loss": ("last", "every"), "rule": ("full", "truncated")}
LIMITS = {"units": (1, 48), "steps": (2, 160), "radius": (0, 3), "forget": (-8, 8), "input": (0, 4),
          "seed": (0, 999_999)}  # fmt: skip

# A cell's equations are turned into a tape once; the lab asks for the same few again and again.
_cell = lru_cache(cells.by_name)


@dataclass(frozen=True)
class Setting:
    """A network and what it hears; each field within its limits, or ConfigError.

    cell: one of `throughtime.cells.NAMES`.          units: H, 1..48.        steps: T, 2..160.
    matrix: "gaussian", "orthogonal" or "identity", how each block of U is drawn.
    radius: its spectral radius, 0..3.
    forget: added to the net input of the gate that keeps the memory, -8..8, where the cell has one.
    input:  the deviation of W x_t, 0..4.             loss: "last", at step T-1 alone, or "every".
    rule: "full", back-propagation through time, or "truncated", the gradient of 1997, along the carousel only.
    seed:   of the weights and the inputs; two cells with one seed hear the same.
    """

    cell: str = "lstm"
    units: int = 16
    steps: int = 60
    matrix: str = "gaussian"
    radius: float = 1.0
    forget: float = 1.0
    input: float = 0.5
    loss: str = "every"
    rule: str = "full"
    seed: int = 0

    def __post_init__(self) -> None:
        _cell(self.cell)
        for name, words in CHOICES.items():
            if getattr(self, name) not in words:
                raise ConfigError(f"{name} must be one of {', '.join(words)}; came {getattr(self, name)!r}")
        for name, (low, high) in LIMITS.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} must lie in {low}..{high}; came {getattr(self, name)}")

    @classmethod
    def read(cls, query: Mapping[str, str]) -> Setting:
        """From words, as a page sends them."""
        known = {f.name: f for f in fields(cls)}
        given: dict[str, Any] = {}
        for name, word in query.items():
            if name not in known:
                raise ConfigError(f"there is no setting {name!r}; there are {', '.join(known)}")
            kind: Any = type(known[name].default)
            try:
                given[name] = kind(word)
            except ValueError:
                raise ConfigError(f"{name} must be a number; came {word!r}") from None
        return cls(**given)


def network(setting: Setting) -> tuple[Recurrent, Tensor]:
    """The layer and its input [T, 1, D], float64."""
    cell, H = _cell(setting.cell), setting.units
    g = torch.Generator().manual_seed(setting.seed)
    x = torch.randn(160, 1, INPUTS, generator=g, dtype=torch.float64)[: setting.steps]
    layer = Recurrent(cell, INPUTS, H, truncated=setting.rule == "truncated", dtype=torch.float64)
    with torch.no_grad():
        for name, p in layer.named_parameters():
            if name.startswith("weight_ih"):
                p.copy_(torch.randn(p.shape, generator=g, dtype=p.dtype) * setting.input / INPUTS**0.5)
            elif name.startswith("weight_hh"):
                for block in p.split(H):
                    block.copy_(_matrix(setting, g))
            else:
                p.zero_()
        for gate in keeping_gates(cell):
            k = list(cell.gates).index(gate)
            layer.get_parameter("bias_ih_l0")[k * H : (k + 1) * H] = setting.forget
    return layer.eval(), x


def _matrix(setting: Setting, g: torch.Generator) -> Tensor:
    drawn = torch.randn(setting.units, setting.units, generator=g, dtype=torch.float64)
    if setting.matrix == "gaussian":
        return drawn * (setting.radius / torch.linalg.eigvals(drawn).abs().max())
    return setting.radius * (
        torch.linalg.qr(drawn)[0] if setting.matrix == "orthogonal" else torch.eye(len(drawn)).to(drawn)
    )


def keeping_gates(cell: Cell) -> list[str]:
    """The gates that, when open, keep a memory as it was: f of an LSTM, u of a GRU; for some cells none."""
    parts = anatomy(cell)
    kept = {n for terms in parts.memories.values() for k, numbers in terms if k > 0 for n in numbers}
    return [name for name, number in parts.gates.items() if number in kept]


@torch.no_grad()
def measure(setting: Setting) -> dict[str, Any]:
    """All that the lab draws of one network, as plain values."""
    layer, x = network(setting)
    g = torch.Generator().manual_seed(setting.seed + 1)
    out = torch.randn(160, 1, setting.units, generator=g, dtype=torch.float64)[: setting.steps]
    if setting.loss == "last":
        out[:-1] = 0
    found: dict[str, Any] = {"cell": layer.cell.name, "equations": layer.cell.equations, "steps": setting.steps,
                             "keeps": keeping_gates(layer.cell)}  # fmt: skip
    recurrence = recurrences(layer, x)[0][0]
    found["matrices"] = [vars(m) for m in recurrent_matrices(recurrence)]
    found["eigenvalues"] = {"U": _eigenvalues_of_U(recurrence)}
    try:
        found["flow"] = flow(gradient_flow(layer, x, out))
        found["eigenvalues"]["J"] = _complex(torch.linalg.eigvals(Tangent(recurrence).jacobian(setting.steps - 1)[0]))
    except FlowError as error:  # a state or a gradient beyond float64: that is what the lab is to show
        found["trouble"] = str(error)
    slope = largest_slope(layer.cell)
    if slope is not None and found["matrices"]:
        found["bound"] = found["matrices"][0]["sigma_1"] * slope
    found["states"] = {}
    for name, s in zip(layer.cell.states, recurrence.sequences, strict=True):
        largest = max(1.0, s.nan_to_num(0, 0, 0).abs().max().item())
        found["states"][name] = picture(s[:, 0], -largest, largest)
    found["gates"] = {}
    if all(s.isfinite().all() for s in recurrence.sequences):
        values = tape_values(recurrence)
        found["gates"] = {n: picture(values[k][:, 0], 0, 1) for n, k in anatomy(layer.cell).gates.items()}
    return found


def _eigenvalues_of_U(r: Recurrence) -> list[list[float]]:
    """Of the first recurrent gate's block; a simple network has no other."""
    U = r.weights.weight_hh
    if U is None or not U.numel():
        return []
    return _complex(torch.linalg.eigvals(U.double()[: U.shape[1]]))


def _complex(values: Tensor) -> list[list[float]]:
    return torch.view_as_real(values).tolist()
