"""Recurrent: the stack of torch's layers for any cell, with Graves' skip connections."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from throughtime.cells import Cell, by_name
from throughtime.engine.operands import autocast_dtype
from throughtime.engine.trace import program
from throughtime.errors import CellError, ConfigError, ShapeError
from throughtime.nn.layer import StackedLayer, State
from throughtime.nn.stack import Weights, check_rules

# A cell with a matrix of this name projects its output: h is [P], the matrix [P, H].
PROJECTION = "W_hr"


class Recurrent(StackedLayer):
    """A stack of recurrent layers of any cell, in torch's form.

        z_t = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh,   s_t = step(z_t, s_{t-1})

    cell: a `throughtime.cells.Cell`, or the name of one from `throughtime.cells.NAMES`. num_layers, bias,
    batch_first, dropout (between layers, in training) and bidirectional mean what they mean in torch.nn.LSTM.

    Parameters, for each layer k, with the suffix _reverse for the second direction: weight_ih_l{k} [G*H, D] and
    bias_ih_l{k} [G*H], a block for each of the cell's G gates; weight_hh_l{k} [R*H, P] and bias_hh_l{k} [R*H] for
    its R recurrent gates, neither if it has none; each per-unit weight [H] under its own name, as p_i_l{k}; each
    matrix, W_xy as weight_xy_l{k}. All are drawn from U(-1/sqrt(H), 1/sqrt(H)), torch's default: peepholes too.
    P = H, unless the cell projects its output (a matrix W_hr [P, H], such as `cells.ProjectedLSTM`): then
    P = proj_size, which only such a cell takes. Any other matrix is [H, H].

    skip: the input goes to every layer, and every layer's output to the output (Graves 2013):

        h^1_t = layer_1(x_t),   h^n_t = layer_n([x_t, h^{n-1}_t]),   y_t = [h^1_t, ..., h^N_t]

    so that y is [T, B, layers * dirs * P], and a linear map of it is the sum over layers of his equation. Dropout
    acts on h^{n-1}_t on its way to layer n, not on x_t, nor on y_t.

    clip, truncated, backend, memory: as in `throughtime.engine.unroll`.

    Raises ConfigError for options that make no sense, CellError for a cell that is not one or cannot be traced
    (unless backend="reference").
    """

    def __init__(
        self,
        cell: Cell | str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        skip: bool = False,
        *,
        proj_size: int = 0,
        clip: float | None = None,
        truncated: bool = False,
        backend: str = "auto",
        memory: str = "fast",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.cell = _cell(cell)
        self.clip, self.truncated, self.backend, self.memory = check_rules(clip, truncated, backend, memory)
        if backend != "reference":
            program(self.cell)  # traced here, so that the error comes here; torch.compile cannot look into a tracer
        for name, n in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            _whole(name, n, 1)
        for name, flag in (
            ("bias", bias), ("batch_first", batch_first), ("bidirectional", bidirectional), ("skip", skip)
        ):  # fmt: skip
            if not isinstance(flag, bool):
                raise ConfigError(f"{name} must be True or False; came {flag!r}")
        if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout <= 1:
            raise ConfigError(f"dropout must be a number in [0, 1], the part that is left out; came {dropout!r}")
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                f"dropout={dropout} acts between layers, and there is one layer; set dropout=0 or num_layers > 1",
                stacklevel=2,
            )
        _check_projection(self.cell, proj_size, hidden_size)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, float(dropout)
        self.bidirectional, self.skip, self.proj_size = bidirectional, skip, proj_size
        for k in range(num_layers):
            for suffix in self._suffixes:
                for name, shape in self._shapes(k).items():
                    p = torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                    self.register_parameter(f"{name}_l{k}{suffix}", p)
        self.reset_parameters()

    @property
    def _suffixes(self) -> tuple[str, ...]:
        return ("", "_reverse") if self.bidirectional else ("",)

    @property
    def _P(self) -> int:
        return self.proj_size or self.hidden_size

    def _shapes(self, k: int) -> dict[str, tuple[int, ...]]:
        """The parameters of one direction of layer k in torch's order: name without suffix -> shape."""
        cell, H, P = self.cell, self.hidden_size, self._P
        G, R = len(cell.gates), len(cell.recurrent_gates)
        below = P * len(self._suffixes)
        D = self.input_size if k == 0 else below + (self.input_size if self.skip else 0)
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (G * H, D)}
        if R:
            shapes["weight_hh"] = (R * H, P)
        if self.bias:
            shapes["bias_ih"] = (G * H,)
            if R:
                shapes["bias_hh"] = (R * H,)
        own: dict[str, tuple[int, ...]] = dict.fromkeys(cell.units, (H,))
        own.update({_matrix_name(n): (P, H) if n == PROJECTION else (H, H) for n in cell.matrices})
        for name in own:
            if name in shapes:
                raise CellError(f"{cell!r} names a weight {name}, which every layer has; give it another name")
        return {**shapes, **own}

    def reset_parameters(self) -> None:
        """Draws every parameter from U(-1/sqrt(H), 1/sqrt(H)), in order, as torch's layers do."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for p in self.parameters():
            torch.nn.init.uniform_(p, -bound, bound)

    def step_cell(self) -> Cell:
        return self.cell

    def layer_weights(self) -> list[list[Weights]]:
        return [[self._weights(f"l{k}{suffix}") for suffix in self._suffixes] for k in range(self.num_layers)]

    def _weights(self, where: str) -> Weights:
        def get(name: str) -> Tensor:
            return self.weight(f"{name}_{where}")

        recurrent = bool(self.cell.recurrent_gates)
        return Weights(
            get("weight_ih"),
            get("weight_hh") if recurrent else None,
            get("bias_ih") if self.bias else None,
            get("bias_hh") if self.bias and recurrent else None,
            tuple(get(n) for n in self.cell.units),
            tuple(get(_matrix_name(n)) for n in self.cell.matrices),
        )

    def forward(self, x: Tensor | PackedSequence, state: State | None = None) -> tuple[Any, State]:
        """(y, state) from x [T, B, D] and the initial state (zeros if None).

        y is [T, B, dirs * P], with skip [T, B, layers * dirs * P]. A state is a tensor [layers * dirs, B, H] for a
        cell with one, otherwise a tuple of such, in the order of the cell's `states`, the first one
        [layers * dirs, B, P]. x may be packed (y is too), [B, T, D] with batch_first, or [T, D] without a batch
        (states have no B then). Under autocast y has autocast's dtype, the states that of the parameters.

        Raises ShapeError where sizes, dtypes or devices do not fit.
        """
        return self._call(x, state)

    def extra_repr(self) -> str:
        shown = [] if repr(self.cell) == f"{type(self).__name__}()" else [repr(self.cell)]
        shown += [str(self.input_size), str(self.hidden_size)]
        defaults = {
            "proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0,
            "bidirectional": False, "skip": False, "clip": None, "truncated": False, "backend": "auto",
            "memory": "fast",
        }  # fmt: skip
        shown += [f"{k}={getattr(self, k)!r}" for k, default in defaults.items() if getattr(self, k) != default]
        return ", ".join(shown)

    def _check(self, input: Any, state: Any) -> tuple[Tensor, ...] | None:
        packed = isinstance(input, PackedSequence)
        x = input.data if packed else input
        if not isinstance(x, Tensor):
            raise ShapeError(f"x must be a Tensor [T, B, D] or a PackedSequence; came {type(input).__name__}")
        form = "[B, T, D]" if self.batch_first else "[T, B, D]"
        if not packed and x.dim() not in (2, 3):
            raise ShapeError(f"x must be {form}, or [T, D] without a batch; came {list(x.shape)}")
        if x.shape[-1] != self.input_size:
            raise ShapeError(f"x must have D = input_size = {self.input_size} in its last place; came {list(x.shape)}")
        batched = packed or x.dim() == 3
        time = 1 if batched and self.batch_first else 0
        if not packed and x.shape[time] == 0:
            raise ShapeError(f"x has no time steps; expected {form} with T >= 1, came {list(x.shape)}")
        weight = self.weight_ih_l0
        if x.device != weight.device:
            raise ShapeError(f"x is on {x.device}, the weights are on {weight.device}; move one to the other")
        if x.dtype != weight.dtype and autocast_dtype(x.device.type) is None:
            raise ShapeError(f"x is {x.dtype}, the weights are {weight.dtype}; convert one, or use torch.autocast")
        if state is None:
            return None
        B = int(input.batch_sizes[0]) if packed else x.shape[1 - time] if batched else None
        return self._check_states(x, state, B)

    def _check_states(self, x: Tensor, state: Any, B: int | None) -> tuple[Tensor, ...]:
        names = tuple(self.cell.states)
        given = (state,) if isinstance(state, Tensor) else tuple(state) if isinstance(state, tuple | list) else ()
        if len(given) != len(names) or not all(isinstance(s, Tensor) for s in given):
            want = "a Tensor" if len(names) == 1 else f"a tuple of {len(names)} Tensors"
            came = f"{len(given)} of them" if given else type(state).__name__
            raise ShapeError(f"the state of {self.cell!r} is {want} ({', '.join(names)}); came {came}")
        rows = self.num_layers * len(self._suffixes)
        for k, (name, s) in enumerate(zip(names, given, strict=True)):
            H = self._P if k == 0 else self.hidden_size
            want_shape = (rows, H) if B is None else (rows, B, H)
            if tuple(s.shape) != want_shape:
                form = "[layers * dirs, H]" if B is None else "[layers * dirs, B, H]"
                raise ShapeError(f"state {name} must be {form} = {list(want_shape)}; came {list(s.shape)}")
            if s.device != x.device:
                raise ShapeError(f"state {name} is on {s.device}, x is on {x.device}; move one to the other")
            if s.dtype != self.weight_ih_l0.dtype and autocast_dtype(x.device.type) is None:
                raise ShapeError(f"state {name} is {s.dtype}, the weights are {self.weight_ih_l0.dtype}; convert one")
        return given


def _cell(cell: Any) -> Cell:
    if isinstance(cell, str):
        return by_name(cell)
    if isinstance(cell, type) and issubclass(cell, Cell):
        raise CellError(f"cell is the class {cell.__name__}; make one of it: {cell.__name__}()")
    if not isinstance(cell, Cell):
        raise CellError(f"cell must be a throughtime.cells.Cell or the name of one; came {type(cell).__name__}")
    return cell


def _whole(name: str, n: Any, least: int) -> None:
    if isinstance(n, bool) or not isinstance(n, int) or n < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}; came {n!r}")


def _check_projection(cell: Cell, proj_size: Any, hidden_size: int) -> None:
    _whole("proj_size", proj_size, 0)
    if PROJECTION in cell.matrices:
        if not 0 < proj_size < hidden_size:
            raise ConfigError(
                f"{cell!r} projects its output from H = {hidden_size} to proj_size units: it must be in "
                f"1..{hidden_size - 1}; came {proj_size}"
            )
    elif proj_size:
        raise ConfigError(
            f"proj_size={proj_size} is for a cell with a matrix {PROJECTION}, which {cell!r} has not; "
            "leave it out, or take cells.ProjectedLSTM()"
        )


def _matrix_name(name: str) -> str:
    # W_hr is torch's weight_hr.
    return f"weight_{name[2:]}" if name.startswith("W_") else name
