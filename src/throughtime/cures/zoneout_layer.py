"""Zoneout: some units keep their old state for a step instead of taking the new one (Krueger 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from throughtime.cells import Cell
from throughtime.cells.around import CellAround
from throughtime.cures.step_noise import NoisyLayer, States, probability, ready
from throughtime.errors import ConfigError
from throughtime.nn.stack import Weights


def zoneout(new: Tensor, old: Tensor, p: float, training: bool = True, generator: Generator | None = None) -> Tensor:
    """One state of one step: `old` with probability p, element by element, else `new` (Krueger 2017).

        training:  m * old + (1 - m) * new,  m ~ Bernoulli(p)          else its mean:  p * old + (1 - p) * new

    For a loop over a cell: h_new, c_new = cell(x_t, (h, c)); h, c = zoneout(h_new, h, 0.05, self.training), ...
    """
    p = probability("p", p)
    if not training or p == 0:
        return p * old + (1 - p) * new if p else new
    device = new.device if generator is None else generator.device
    keep = torch.rand(new.shape, device=device, generator=generator).to(new.device) < p
    return torch.where(keep, old, new)


class ZoneoutCell(CellAround):
    """A cell with zoneout, by masks that come in beside its net inputs; or, without masks, its mean.

        s_t = m * s_{t-1} + (1 - m) * step(z_t, s_{t-1})        for each state that has a probability

    With `masked` the cell has another gate, "keep_<state>", for each such state: 1 where the old state is kept.
    """

    def __init__(self, cell: Cell, p: Mapping[str, float], masked: bool) -> None:
        self.p, self.masked = dict(p), masked
        keeps = tuple(f"keep_{name}" for name in self.p) if masked else ()
        super().__init__(cell, gates=(*cell.gates, *keeps), input_only=(*cell.input_only, *keeps))

    def input(self, x: Tensor) -> Tensor:
        return x if self.masked else self.cell.input(x)

    def step(self, z: Any, s: Any, w: Any) -> Any:
        out = []
        for name, value in zip(self.cell.states, self.inner(z, s, w), strict=True):
            old, p = getattr(s, name), self.p.get(name, 0.0)
            if p and self.masked:
                value = value + getattr(z, f"keep_{name}") * (old - value)
            elif p:
                value = p * old + (1 - p) * value
            out.append(value)
        return tuple(out)

    def __repr__(self) -> str:
        return f"ZoneoutCell({self.cell!r}, {self.p})"


class Zoneout(NoisyLayer):
    """A recurrent layer with zoneout: at each step a unit keeps its old state with probability p (Krueger 2017).

        s_t = m_t * s_{t-1} + (1 - m_t) * step(z_t, s_{t-1}),  m_t ~ Bernoulli(p) for each step, unit and sequence

    Unlike dropout it loses nothing: a kept state is a shortcut through time for the memory and for its gradient. In
    eval mode the mean: p * s_{t-1} + (1 - p) * step(...).

        model.rnn = Zoneout(model.rnn, h=0.05, c=0.5)        # the paper's, for an LSTM

    p: by the name of the cell's state, h=..., c=...; those that are not named are left alone.

    The masks enter the engine as inputs behind an identity, so that every backend runs it; while training the input
    product grows with them, from G H D to (G + n)(D + n H) H for n states with zoneout. In an LSTM of D = H with both
    states that is 4.5 times that product. See `NoisyLayer` for what becomes of the layer. Raises ConfigError for other
    modules, probabilities and states, and for a projected state.
    """

    def __init__(self, layer: nn.Module, generator: Generator | None = None, **p: float) -> None:
        super().__init__(layer, generator)
        cell = self.layer.step_cell()
        stray = [name for name in p if name not in cell.states]
        if stray or not p:
            raise ConfigError(
                f"name states of {cell!r} ({', '.join(cell.states)}) and their probabilities; came {stray or 'none'}"
            )
        if getattr(self.layer, "proj_size", 0):
            raise ConfigError("zoneout needs states of H units; this layer projects its output to fewer")
        self.p = {name: probability(name, p[name]) for name in cell.states if p.get(name)}
        self._masked, self._mean = (ready(ZoneoutCell(cell, self.p, masked)) for masked in (True, False))

    @property
    def disturbed(self) -> bool:
        return bool(self.p)

    def run(
        self, cell: Cell, x: Tensor, w: Weights, first: list[Tensor], lengths: Tensor | None, reverse: bool
    ) -> tuple[Tensor, States]:
        if not self.training:
            sequences, finals = self.unrolled(self._mean, x, w, first, lengths, reverse)
            return sequences[0], finals
        n, H, D = len(self.p), first[0].shape[-1], x.shape[-1]
        masks = [self.mask(x, (*x.shape[:2], H), p) for p in self.p.values()]
        wide = torch.cat([cell.input(x), *masks], -1)
        eye = torch.eye(n * H, dtype=w.weight_ih.dtype, device=x.device)
        W = torch.cat([F.pad(w.weight_ih, (0, n * H)), F.pad(eye, (D, 0))])
        b = None if w.bias_ih is None else F.pad(w.bias_ih, (0, n * H))
        sequences, finals = self.unrolled(
            self._masked, wide, w._replace(weight_ih=W, bias_ih=b), first, lengths, reverse
        )
        return sequences[0], finals

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={p:g}" for name, p in self.p.items())
