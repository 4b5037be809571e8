"""RNN, LSTM and GRU: torch.nn's, with our engine under them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from throughtime import cells
from throughtime.cells import Cell
from throughtime.engine.operands import autocast_dtype
from throughtime.engine.trace import program
from throughtime.nn.layer import StackedLayer
from throughtime.nn.stack import Weights, check_rules

_CELLS: dict[str, Cell] = {
    "RNN_TANH": cells.Simple("tanh"),
    "RNN_RELU": cells.Simple("relu"),
    "LSTM": cells.LSTM(),
    "GRU": cells.GRU(),
}
_NO_PROJECTION = "proj_size argument is only supported for LSTM, not RNN or GRU"
_PROJECTED = cells.ProjectedLSTM()
for _cell in (*_CELLS.values(), _PROJECTED):
    program(_cell)  # traced here, for torch.compile cannot look into a tracer


class TorchLike(StackedLayer, torch.nn.RNNBase):
    """What our RNN, LSTM and GRU share: torch's constructor, parameters and checks, our call.

    They are torch.nn.RNNBase, but not torch.nn.RNN, LSTM or GRU: torch.compile breaks the graph at those by their
    type. Errors are torch's own, in type and text, so that code written for torch meets what it expects.
    """

    def __init__(
        self,
        *args: Any,
        clip: float | None = None,
        truncated: bool = False,
        backend: str = "auto",
        memory: str = "fast",
        **kwargs: Any,
    ) -> None:
        rules = check_rules(clip, truncated, backend, memory)
        super().__init__(*args, **kwargs)
        if self.proj_size > 0 and self.mode != "LSTM":  # torch lets it pass where it is not named
            raise ValueError(_NO_PROJECTION)
        self.clip, self.truncated, self.backend, self.memory = rules

    def step_cell(self) -> Cell:
        return _PROJECTED if self.proj_size > 0 else _CELLS[self.mode]

    def layer_weights(self) -> list[list[Weights]]:
        directions = ("", "_reverse") if self.bidirectional else ("",)
        return [[self._weights(f"l{k}{suffix}") for suffix in directions] for k in range(self.num_layers)]

    def _weights(self, where: str) -> Weights:
        def get(name: str) -> Tensor:
            return self.weight(f"{name}_{where}")

        return Weights(
            get("weight_ih"),
            get("weight_hh"),
            get("bias_ih") if self.bias else None,
            get("bias_hh") if self.bias else None,
            (),
            (get("weight_hr"),) if self.proj_size > 0 else (),
        )

    def flatten_parameters(self) -> None:
        """Does nothing: there is no cuDNN that wants the parameters in one piece."""

    def extra_repr(self) -> str:
        rules = (("clip", None), ("truncated", False), ("backend", "auto"), ("memory", "fast"))
        extra = [f"{k}={getattr(self, k)!r}" for k, default in rules if getattr(self, k) != default]
        return ", ".join([super().extra_repr(), *extra])

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> Any:  # type: ignore[override]
        """(y, h_n), for an LSTM (y, (h_n, c_n)), from input [T, B, D] and hx; as torch.nn's.

        Takes and gives what torch.nn's do: unbatched, batch first, packed. Raises ValueError and RuntimeError
        where they do. Under autocast y has autocast's dtype, and h_n and c_n have that of the parameters: they
        carry a sum over time, which a short dtype would lose.
        """
        return self._call(input, hx)

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        # torch's own asks a list that functional_call does not keep up to date.
        weight = self.weight_ih_l0
        if input.dtype != weight.dtype and autocast_dtype(input.device.type) is None:
            raise ValueError(
                f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype}). "
                f"Convert input: input.to({weight.dtype}), or convert model: model.to({input.dtype})"
            )
        expected = 2 if batch_sizes is not None else 3
        if input.dim() != expected:
            raise RuntimeError(f"input must have {expected} dimensions, got {input.dim()}")
        if self.input_size != input.size(-1):
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.size(-1)}"
            )
        if input.device != weight.device:
            raise RuntimeError(
                "Input and parameter tensors are not at the same device, found input tensor at "
                f"{input.device} and parameter tensor at {weight.device}"
            )

    def _check(self, input: Any, state: Any) -> tuple[Tensor, ...] | None:
        packed = isinstance(input, PackedSequence)
        batched = packed or input.dim() == 3
        x = input.data if packed else input
        if not packed:
            if input.dim() not in (2, 3):
                raise ValueError(self._not_2d_or_3d(input.dim()))
            x = x if batched else x.unsqueeze(0 if self.batch_first else 1)
        sizes = input.batch_sizes if packed else None
        given = None if state is None else self._check_dims(state, batched)
        self.check_input(x, sizes)
        if given is not None:
            self._check_states(x, given if batched else tuple(s.unsqueeze(1) for s in given), sizes)
        if not packed and x.shape[1 if self.batch_first else 0] == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        return given

    def _not_2d_or_3d(self, dim: int) -> str:
        return f"{self.mode}: Expected input to be 2D or 3D, got {dim}D instead"

    def _check_dims(self, hx: Any, batched: bool) -> tuple[Tensor, ...]:
        if hx.dim() != (3 if batched else 2):
            kind, dim = ("batched", 3) if batched else ("unbatched", 2)
            raise RuntimeError(f"For {kind} {dim}-D input, hx should also be {dim}-D but got {hx.dim()}-D tensor")
        return (hx,)

    def _check_states(self, x: Tensor, given: tuple[Tensor, ...], sizes: Tensor | None) -> None:
        self.check_hidden_size(given[0], self.get_expected_hidden_size(x, sizes))
        self._check_kind(x, given)

    def _check_kind(self, x: Tensor, given: tuple[Tensor, ...]) -> None:
        dtype = self.weight_ih_l0.dtype
        for s in given:
            if s.device != x.device:
                raise RuntimeError(
                    "Input and hidden tensors are not at the same device, found input tensor at "
                    f"{x.device} and hidden tensor at {s.device}"
                )
            if s.dtype != dtype and autocast_dtype(x.device.type) is None:
                raise RuntimeError(
                    f"input and hidden state must have the same dtype, but got {dtype} and {s.dtype}. "
                    f"Convert the state: hx.to({dtype})"
                )


class RNN(TorchLike):
    """torch.nn.RNN on our engine: the simple network (Elman 1990), nonlinearity "tanh" or "relu".

        h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)

    Arguments, parameters, initialisation, call and return are torch.nn.RNN's, and so are its errors; a state_dict
    moves between the two. Keyword-only besides: clip, truncated, backend and memory, as in
    `throughtime.engine.unroll`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _no_projection(kwargs)
        if len(args) > 3:
            nonlinearity, args = args[3], args[:3] + args[4:]
        else:
            nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        self.nonlinearity = nonlinearity
        super().__init__(f"RNN_{nonlinearity.upper()}", *args, **kwargs)

    def _not_2d_or_3d(self, dim: int) -> str:
        return f"RNN: Expected input to be 2D or 3D, got {dim}D tensor instead"


class LSTM(TorchLike):
    """torch.nn.LSTM on our engine: long short-term memory (Gers 2000), with proj_size projected (Sak 2014).

        i_t, f_t, o_t = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o)
        c_t = f_t * c_{t-1} + i_t * tanh(z_g)
        h_t = o_t * tanh(c_t)                       z_t = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh

    Arguments, parameters, initialisation, call and return are torch.nn.LSTM's, and so are its errors; a state_dict
    moves between the two. Keyword-only besides: clip, truncated, backend and memory, as in
    `throughtime.engine.unroll`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("LSTM", *args, **kwargs)

    def _check_dims(self, hx: Any, batched: bool) -> tuple[Tensor, ...]:
        h, c = hx[0], hx[1]
        kind, dim = ("batched", 3) if batched else ("unbatched", 2)
        if h.dim() != dim or c.dim() != dim:
            raise RuntimeError(
                f"For {kind} {dim}-D input, hx and cx should also be {dim}-D but got ({h.dim()}-D, {c.dim()}-D) tensors"
            )
        return (h, c)

    def _check_states(self, x: Tensor, given: tuple[Tensor, ...], sizes: Tensor | None) -> None:
        hidden = self.get_expected_hidden_size(x, sizes)
        self.check_hidden_size(given[0], hidden, "Expected hidden[0] size {}, got {}")
        self.check_hidden_size(given[1], (*hidden[:2], self.hidden_size), "Expected hidden[1] size {}, got {}")
        self._check_kind(x, given)


class GRU(TorchLike):
    """torch.nn.GRU on our engine: the gated recurrent unit (Cho 2014), the reset after the recurrent product.

        r_t, u_t = sigmoid(z_r), sigmoid(z_u)
        n_t = tanh(W_in x_t + b_in + r_t * (W_hn h_{t-1} + b_hn))
        h_t = (1 - u_t) * n_t + u_t * h_{t-1}

    Arguments, parameters, initialisation, call and return are torch.nn.GRU's, and so are its errors; a state_dict
    moves between the two. Keyword-only besides: clip, truncated, backend and memory, as in
    `throughtime.engine.unroll`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _no_projection(kwargs)
        super().__init__("GRU", *args, **kwargs)


def _no_projection(kwargs: dict[str, Any]) -> None:
    if "proj_size" in kwargs:
        raise ValueError(_NO_PROJECTION)
