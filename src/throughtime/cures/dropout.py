"""Variational dropout for recurrent networks: one mask a sequence, the same at every step (Gal & Ghahramani 2016)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from throughtime.cells import Cell
from throughtime.cells.around import CellAround
from throughtime.cures.step_noise import NoisyLayer, States, probability, ready
from throughtime.errors import ConfigError
from throughtime.nn.stack import Weights


class MaskedCell(CellAround):
    """A cell whose h_{t-1} is multiplied by a mask before U, the same mask at every step.

    The states are (hidden, those of the cell, mask): `hidden` = mask * h is what U multiplies, and the mask is a state
    that the step gives back as it is. So it needs nothing of a backend that any cell does not.
    """

    def __init__(self, cell: Cell) -> None:
        if cell.inside or cell.matrices:
            raise ConfigError(
                f"{cell!r} multiplies its state by a matrix inside the step, where the mask does not reach it; "
                "hidden dropout is for cells whose product with U stands outside"
            )
        if not cell.recurrent_gates:
            raise ConfigError(f"{cell!r} has no recurrent weights for hidden dropout to act on")
        super().__init__(cell, states=("hidden", *cell.states, "mask"))

    def step(self, z: Any, s: Any, w: Any) -> Any:
        new = self.inner(z, s, w)
        return (s.mask * new[0], *new, s.mask)


class VariationalDropout(NoisyLayer):
    """A recurrent layer with variational dropout: on its input and on h_{t-1} before U (Gal & Ghahramani 2016).

        z_t = W (m_x * x_t) + b + U (m_h * h_{t-1});    m = 1/(1-p) with probability 1-p, else 0

    The masks are drawn once for each sequence of the batch, layer and direction (m_x: layer), and stay the same over
    all steps; all gates share them. A memory that is dropped anew at each step would be gone after a few; with the
    same units dropped throughout, those that are left carry it. The carried state itself is not dropped: it is what
    U reads of it. In eval mode the layer runs as it is.

        model.rnn = VariationalDropout(model.rnn, inputs=0.25, hidden=0.25)

    inputs: p for the input of every layer of the stack.    hidden: p for h_{t-1}.
    For the last output put a `LockedDropout` behind. See `NoisyLayer` for what becomes of the layer. Raises ConfigError
    for other modules and probabilities, and with hidden > 0 for a cell that multiplies its state inside the step.
    """

    def __init__(
        self, layer: nn.Module, inputs: float = 0.25, hidden: float = 0.25, generator: Generator | None = None
    ) -> None:
        self.inputs, self.hidden = probability("inputs", inputs), probability("hidden", hidden)
        super().__init__(layer, generator)
        self._cell = ready(MaskedCell(self.layer.step_cell())) if hidden else None

    @property
    def disturbed(self) -> bool:
        return self.training and (self.inputs > 0 or self.hidden > 0)

    def input(self, x: Tensor) -> Tensor:
        if not self.inputs:
            return x
        return x * self.mask(x, tuple(x.shape[1:]), 1 - self.inputs) / (1 - self.inputs)

    def run(
        self, cell: Cell, x: Tensor, w: Weights, first: list[Tensor], lengths: Tensor | None, reverse: bool
    ) -> tuple[Tensor, States]:
        if self._cell is None:
            sequences, finals = self.unrolled(cell, x, w, first, lengths, reverse)
            return sequences[0], finals
        mask = self.mask(first[0], tuple(first[0].shape), 1 - self.hidden) / (1 - self.hidden)
        start = [mask * first[0], *first, mask]
        sequences, finals = self.unrolled(self._cell, x, w, start, lengths, reverse)
        return sequences[1], finals[1:-1]

    def extra_repr(self) -> str:
        return f"inputs={self.inputs:g}, hidden={self.hidden:g}"


class LockedDropout(nn.Module):
    """Dropout with one mask for all steps of a sequence, in training mode (Gal & Ghahramani 2016).

        y_t = m * x_t,    m = 1/(1-p) with probability 1-p, else 0, drawn anew for each call

    x is [T, B, D], or [B, T, D] with batch_first, or a PackedSequence. For a loop over a cell, draw the mask once for
    each sequence and multiply: `m = drop.mask(h)`, then `h = cell(x_t, m * h)` at every step.
    """

    def __init__(self, p: float = 0.5, batch_first: bool = False, generator: Generator | None = None) -> None:
        super().__init__()
        self.p, self.batch_first, self.generator = probability("p", p), batch_first, generator

    def mask(self, like: Tensor) -> Tensor:
        """A fresh mask in the shape of `like`, 1 everywhere in eval mode."""
        if not self.training or self.p == 0:
            return torch.ones_like(like)
        device = like.device if self.generator is None else self.generator.device
        drawn = torch.rand(like.shape, device=device, generator=self.generator).to(like.device)
        return (drawn >= self.p).to(like.dtype) / (1 - self.p)

    def forward(self, x: Any) -> Any:
        if not self.training or self.p == 0:
            return x
        if isinstance(x, PackedSequence):
            sizes = x.batch_sizes
            mask = self.mask(x.data[: int(sizes[0])])
            # Packed, the rows of each step are its first sequences.
            rows = torch.cat([torch.arange(int(n)) for n in sizes]).to(x.data.device)
            return x._replace(data=x.data * mask[rows])
        if x.dim() < 2:
            raise ConfigError(f"x must have a time dimension, [T, B, D]; came {list(x.shape)}")
        time = 1 if self.batch_first and x.dim() > 2 else 0
        return x * self.mask(x.select(time, 0)).unsqueeze(time)

    def extra_repr(self) -> str:
        return f"p={self.p:g}"
