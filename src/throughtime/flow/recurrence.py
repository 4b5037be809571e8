"""One recurrence as it ran: a cell, its weights, what went in; and the gradients of losses sent back through it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from throughtime.cells import Cell
from throughtime.engine import torch_backend
from throughtime.engine.cpu.laid_out import LaidOut
from throughtime.engine.operands import Operands, operands
from throughtime.engine.rules import with_rule
from throughtime.engine.trace import tape_of
from throughtime.errors import FlowError
from throughtime.flow.entering import Entering
from throughtime.flow.ran import net_inputs, run_forward, run_laid_out
from throughtime.flow.sent import send
from throughtime.nn.stack import Weights


class Followed(NamedTuple):
    """What arrives at step k of a recurrence from every loss step that is followed.

    rows:   the loss steps t, in the order of the first dimension of what follows.
    dz:     delta_{t,k} = dL_t/dz_k, the net inputs of all gates side by side, [rows, B, C * H].
    states: dL_t/ds_k for every state by name, along all paths, each [rows, B, .].
    values: every value of the derivative's tape at step k, for those who know the tape.
    """

    k: int
    rows: list[int]
    dz: Tensor
    states: dict[str, Tensor]
    values: dict[int, Tensor]


@dataclass(frozen=True)
class Recurrence:
    """One layer of one network in one direction, as it ran over one batch; everything about it is recomputed from this.

    cell, weights: what ran.          x: its input [T, B, D].          states: the initial ones, each [B, .].
    lengths: [B] or None.             reverse: whether it ran from the last step to the first.
    truncated: whether its training cuts the gradient as of 1997 (see `throughtime.engine.unroll`).
    name, layer: which one it is in the model it is from.
    dtype: in what all of it is computed, whatever the dtype of the tensors given: float64, or float32, which takes
           about half the time, with a relative error of about 1e-6 in the size of a gradient.
    backend: what the layer runs on, as `throughtime.engine.unroll` takes it: it is followed where that backend can.
    """

    cell: Cell
    weights: Weights
    x: Tensor
    states: Sequence[Tensor] | None = None
    lengths: Tensor | None = None
    reverse: bool = False
    truncated: bool = False
    name: str = ""
    layer: int = 0
    dtype: torch.dtype = torch.float64
    backend: str = "auto"

    @cached_property
    def operands(self) -> Operands:
        """What the engine takes, in `dtype` and without a graph."""

        def cast(v: Tensor) -> Tensor:
            return v.detach().to(self.dtype)

        w = self.weights
        units, matrices = ([cast(v) for v in group] for group in (w.units, w.matrices))
        states = None if self.states is None else [cast(s) for s in self.states]
        U, b_x, b_h = (None if v is None else cast(v) for v in (w.weight_hh, w.bias_ih, w.bias_hh))
        x, W = cast(self.x), cast(w.weight_ih)
        return operands(self.cell, x, W, U, b_x, b_h, units, matrices, states, self.lengths)

    @cached_property
    def _ran(self) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        return run_forward(self.cell, self.operands, self.lengths, self.reverse, self.backend)

    def run_ahead(self) -> None:
        """Runs it, if it has not run yet, such that gradients can be sent back once without computing its steps again.

        For those who are about to do so: what is kept for it is given up once it is used.
        """
        if "_ran" in self.__dict__:
            return
        how = (self.lengths, self.reverse, self.truncated, self.backend)
        found = run_laid_out(self.cell, self.operands, *how)
        if found is not None:
            self.__dict__["_ran"], self.__dict__["_laid_out"] = (*found[:2], None), found[2]

    def laid_out(self) -> LaidOut | None:
        """What `run_ahead` kept, once; None if it is not there."""
        return self.__dict__.pop("_laid_out", None)

    @property
    def sequences(self) -> list[Tensor]:
        """Every state of the cell at every step, each [T, B, .] float64."""
        return self._ran[0]

    @property
    def finals(self) -> list[Tensor]:
        """Every state of the cell after the last step, each [B, .] float64."""
        return self._ran[1]

    @property
    def output(self) -> Tensor:
        """The state that is shown, [T, B, P] float64."""
        return self.sequences[0]

    @cached_property
    def z(self) -> Tensor:
        """The net inputs of all columns side by side, [T, B, C * H] float64."""
        if self._ran[2] is not None:
            return self._ran[2]
        v = self.operands
        h = torch_backend.previous(self.sequences[0], v.states[0], self.lengths, self.reverse)
        return net_inputs(tape_of(self.cell), v, h)

    @property
    def net_inputs(self) -> dict[str, Tensor]:
        """The net inputs z by column name, each [T, B, H] float64."""
        columns = self.cell.columns
        z = self.z.split(self.z.shape[-1] // len(columns), dim=-1)
        return {c.name: v for c, v in zip(columns, z, strict=True)}

    @torch.no_grad()
    def linearised(self) -> torch_backend.Linearised:
        """The pass made ready to send gradients back through, with the total gradients of the states."""
        v = self.operands
        tape = with_rule(tape_of(self.cell), None, self.truncated)
        return torch_backend.linearise(
            tape, self.z, v.U, v.units, v.matrices, v.states, self.sequences, self.lengths, self.reverse,
            self.truncated, totals=True,
        )  # fmt: skip

    @cached_property
    def keep(self) -> Tensor | None:
        """Which steps are the sequences' own and not padding: bool [T, B, 1]; None where all are."""
        if self.lengths is None:
            return None
        return (torch.arange(self.x.shape[0], device=self.x.device)[:, None] < self.lengths)[..., None]

    @cached_property
    def input_slope(self) -> Tensor | None:
        """The derivative of the cell's map of x before W, [T, B, D]; None where it is the identity."""
        if type(self.cell).input is Cell.input:
            return None
        with torch.enable_grad():
            x = self.x.detach().double().requires_grad_()
            return torch.autograd.grad(self.cell.input(x).sum(), x)[0]

    def at_last_step(self, finals: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Gradients [B, .] that enter the states after the last step, each as [T, B, .] at the step that is it."""
        T, B = self.x.shape[:2]
        spread: list[Tensor | None] = []
        for v in finals:
            if v is None:
                spread.append(None)
                continue
            full = self.output.new_zeros(T, *v.shape)
            if self.reverse:
                full[0] = v
            elif self.lengths is None:
                full[T - 1] = v
            else:
                full[self.lengths - 1, torch.arange(B, device=v.device)] = v.to(full)
            spread.append(full)
        return spread

    @torch.no_grad()
    def follow(self, entering: Entering) -> Iterator[Followed]:
        """Sends every row of `entering` back through time; yields what arrives, step by step, the last step first.

        In row t stands what L_t, the loss that enters at step t, sends back. Nothing enters in the padding, nor
        comes out of it.
        """
        v, keep, S = self.operands, self.keep, len(self.cell.states)
        T, B = self.x.shape[:2]
        lin = self.linearised()
        totals = {o.name: o.values[0] for o in lin.tape.outputs if o.kind == "total"}

        def inside(g: Tensor | None) -> Tensor | None:
            if g is None:
                return None
            g = g.detach().to(self.output)
            return g if keep is None else torch.where(keep, g, g.new_zeros(()))

        direct = [inside(g) for g in entering.direct]
        above = None if entering.above is None else [inside(g) for g in entering.above]
        if len(direct) != S or (above is not None and len(above) != S):
            raise FlowError(f"{self.cell!r} has {S} state(s), and so many gradients can enter; came {len(direct)}")
        chosen = range(T) if entering.rows is None else entering.rows
        rows: list[int] = [] if above is None else [0] if entering.summed else list(chosen)
        followed = set(chosen)
        start = [s.new_zeros(len(rows), *s.shape) for s in v.states]

        def inject(t: int, ds: list[Tensor]) -> list[Tensor]:
            new = [None if g is None else g[t] for g in direct]
            if above is None:
                # Only losses at steps already passed are on their way: a new row joins at each step.
                if t not in followed:
                    return ds
                rows.append(t)
                joined = [d.new_zeros(1, *d.shape[1:]) if g is None else g[None] for d, g in zip(ds, new, strict=True)]
                return [torch.cat([d, n]) for d, n in zip(ds, joined, strict=True)]
            ds = [d.clone() if g is None else d + g[:, t] for d, g in zip(ds, above, strict=True)]
            if not entering.summed and t in followed:
                row = rows.index(t)
                for d, g in zip(ds, new, strict=True):
                    if g is not None:
                        d[row] += g
            return ds

        for k, dz, _, values in torch_backend.backward_steps(lin, start, inject):
            arrived = {}
            for name, number in totals.items():
                value = values[number]
                value = value.expand(len(rows), B, value.shape[-1])
                arrived[name] = value if keep is None else torch.where(keep[k], value, value.new_zeros(()))
            yield Followed(k, list(rows), dz, arrived, values)

    def to_input(self, step: Followed) -> Tensor:
        """dL_t/dx_k [rows, B, D] from what arrived at step k."""
        W = self.operands.W
        dx = torch.matmul(step.dz[..., : W.shape[0]], W)
        return dx if self.input_slope is None else dx * self.input_slope[step.k]

    @torch.no_grad()
    def send_back(
        self,
        direct: Tensor | Sequence[Tensor | None] | Entering | None,
        above: Tensor | None = None,
        want_dx: bool = False,
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """The maps of the gradient through time [T, T] (see `GradientFlow`), and dL_t/dx [rows, T, B, D] if asked for.

        The rows of dL_t/dx are the loss steps that are followed, all T unless `Entering.rows` says otherwise.

        direct: g [T, B, P], the gradient of the loss that enters the output at each step, each followed alone; or
                one such for each state; or all of it as `Entering`.
        above:  what enters at each step from each loss further up the network, [loss step, T, B, P].
        """
        if not isinstance(direct, Entering):
            rest: list[Tensor | None] = [None] * (len(self.cell.states) - 1)
            given = [direct, *rest] if direct is None or isinstance(direct, Tensor) else list(direct)
            direct = Entering(given, None if above is None else [above, *rest])
        sent = send(self, direct, want_dx=want_dx)
        return sent.maps(), sent.dx
