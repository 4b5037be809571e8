"""The backend that runs the tape with torch: forward step by step, backward by the derived tape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from throughtime.cells import Column
from throughtime.engine.derive import derive
from throughtime.engine.interpret import evaluate
from throughtime.engine.tape import Op, Tape

# Receives t and the gradient that step t+1 sent back; returns the gradient at the states of step t, with
# what enters there from outside added. It may add rows in front: one for every loss that is followed.
Inject = Callable[[int, list[Tensor]], list[Tensor]]


def forward(
    tape: Tape,
    x: Tensor,
    W: Tensor,
    U: Tensor,
    b: Tensor,
    units: Sequence[Tensor],
    matrices: Sequence[Tensor],
    states: Sequence[Tensor],
    lengths: Tensor | None,
    reverse: bool,
    save: bool,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """States at every step [T, B, .], last states [B, .], and the net inputs z [T, B, C * H] if `save`."""
    (T, B, _), dtype, C = x.shape, states[0].dtype, len(tape.columns)
    H = b.shape[0] // C
    X = W.shape[0]
    z = x.new_zeros(T, B, C * H, dtype=dtype)
    z[..., :X] = F.linear(x, W)
    z += b
    runs, n = column_runs(tape.columns), len(tape.inputs)
    ops = [(n + i, op) for i, op in enumerate(tape.ops)]
    sequences = [s.new_empty(T, *s.shape) for s in states]
    now, rest = list(states), [*units, *matrices]
    for t in _order(T, reverse):
        if U.shape[0]:
            hs = F.linear(now[0].to(U.dtype), U)
            for (c0, c1), (h0, h1) in runs:
                z[t, :, c0 * H : c1 * H] += hs[:, h0 * H : h1 * H]
        values = dict(enumerate([*z[t].split(H, dim=-1), *now, *rest]))
        evaluate(ops, values)
        new = [values[out.values[0]] for out in tape.outputs]
        if lengths is not None:
            valid = (t < lengths)[:, None]
            new = [torch.where(valid, v, old) for v, old in zip(new, now, strict=True)]
        for sequence, value in zip(sequences, new, strict=True):
            sequence[t] = value
        now = [sequence[t] for sequence in sequences]
    finals = [v.clone() for v in now]
    if lengths is not None:
        steps = torch.arange(T, device=x.device)
        padding = (steps[:, None] >= lengths)[..., None]
        sequences = [s.masked_fill_(padding, 0) for s in sequences]
    return sequences, finals, z if save else z.new_empty(0)


def saved_width(tape: Tape, H: int, P: int, matrices: Sequence[tuple[int, int]]) -> int:
    """How many numbers a row (one sequence, one step) keeps from the forward for the backward pass: its net inputs."""
    return len(tape.columns) * H


@dataclass
class Linearised:
    """One unrolled pass, ready to send gradients back through: all that does not depend on them is computed.

    fixed: values of the backward tape that are the same for every gradient, [T, B, .] or, for weights, [H].
    ops:   the operations that do depend on it, run step by step.
    """

    tape: Tape
    fixed: dict[int, Tensor]
    stepwise: frozenset[int]
    ops: tuple[tuple[int, Op], ...]
    U: Tensor
    lengths: Tensor | None
    reverse: bool
    truncated: bool
    H: int


def linearise(
    tape: Tape,
    z: Tensor,
    U: Tensor,
    units: Sequence[Tensor],
    matrices: Sequence[Tensor],
    states: Sequence[Tensor],
    sequences: Sequence[Tensor],
    lengths: Tensor | None,
    reverse: bool,
    truncated: bool,
    totals: bool = False,
) -> Linearised:
    """The backward tape with everything computed, for all steps at once, that no gradient enters."""
    H = z.shape[-1] // len(tape.columns)
    back = derive(tape, totals)
    n = len(back.inputs)
    before = [previous(s, first, lengths, reverse) for s, first in zip(sequences, states, strict=True)]
    fixed = dict(enumerate([*z.split(H, dim=-1), *before, *units, *matrices]))
    stepwise = set(range(len(z.split(H, dim=-1)) + len(before)))
    seeds = {i for i, inp in enumerate(back.inputs) if inp.kind == "g"}
    moving, early, late = set(seeds), [], []
    for i, op in enumerate(back.ops):
        if moving.isdisjoint(op.args):
            early.append((n + i, op))
            if not stepwise.isdisjoint(op.args):
                stepwise.add(n + i)
        else:
            moving.add(n + i)
            late.append((n + i, op))
    evaluate(early, fixed)
    return Linearised(back, fixed, frozenset(stepwise), tuple(late), U, lengths, reverse, truncated, H)


def backward_steps(
    lin: Linearised, start: Sequence[Tensor], inject: Inject
) -> Iterator[tuple[int, Tensor, list[Tensor], dict[int, Tensor]]]:
    """Walks back through time. Yields, for each step from the last to the first: t, the gradient with respect to
    the net inputs [.., B, C * H], the gradient with respect to the states before the step, and all values of the tape.
    """
    back, H, U = lin.tape, lin.H, lin.U
    T = lin.fixed[0].shape[0]
    states = back.names("s")
    seeds = [i for i, inp in enumerate(back.inputs) if inp.kind == "g"]
    z_of = {o.name: o.values[0] for o in back.outputs if o.kind == "z"}
    s_of = {o.name: o.values[0] for o in back.outputs if o.kind == "s"}
    runs = column_runs(back.columns)
    ds = list(start)
    for t in reversed(_order(T, lin.reverse)):
        ds = inject(t, ds)
        values = {i: v[t] if i in lin.stepwise else v for i, v in lin.fixed.items()}
        values.update(zip(seeds, ds, strict=True))
        evaluate(lin.ops, values)
        rows = ds[0].shape[:-1]
        blank = ds[0].new_zeros(())
        dz = torch.cat(
            [values[z_of[c.name]].expand(*rows, H) if c.name in z_of else blank.expand(*rows, H) for c in back.columns],
            -1,
        )
        new = [
            values[s_of[s]].expand_as(d) if s in s_of else torch.zeros_like(d) for s, d in zip(states, ds, strict=True)
        ]
        if lin.lengths is not None:
            valid = (t < lin.lengths)[:, None]
            dz = torch.where(valid, dz, blank)
        if U.shape[0] and not lin.truncated:
            dh = torch.matmul(recurrent_part(dz, runs, H).to(U.dtype), U).to(dz.dtype)
            new[0] = new[0] + dh
        if lin.lengths is not None:
            new = [torch.where(valid, v, d) for v, d in zip(new, ds, strict=True)]
        ds = new
        yield t, dz, ds, values


def backward(
    tape: Tape,
    x: Tensor,
    W: Tensor,
    U: Tensor,
    b: Tensor,
    units: Sequence[Tensor],
    matrices: Sequence[Tensor],
    states: Sequence[Tensor],
    lengths: Tensor | None,
    sequences: Sequence[Tensor],
    z: Tensor,
    d_sequences: Sequence[Tensor],
    d_finals: Sequence[Tensor],
    reverse: bool,
    truncated: bool,
    need_dx: bool,
) -> list[Tensor]:
    """Gradients in the order x (empty unless need_dx), W, U, b, units, matrices, states."""
    lin = linearise(tape, z, U, units, matrices, states, sequences, lengths, reverse, truncated)
    dz = torch.empty_like(z)
    d_units = [torch.zeros_like(w) for w in units]
    d_matrices = [torch.zeros_like(m) for m in matrices]
    w_out = [(tape.names("w").index(o.name), o.values[0]) for o in lin.tape.outputs if o.kind == "w"]
    m_out = [(tape.names("m").index(o.name), o.values) for o in lin.tape.outputs if o.kind == "m"]
    keep = None if lengths is None else (torch.arange(z.shape[0], device=z.device)[:, None] < lengths)[..., None]

    def inject(t: int, ds: list[Tensor]) -> list[Tensor]:
        if keep is None:
            return [d + g[t] for d, g in zip(ds, d_sequences, strict=True)]
        # What is shown beyond the length is a constant 0: no gradient enters there.
        return [torch.where(keep[t], d + g[t], d) for d, g in zip(ds, d_sequences, strict=True)]

    zero = z.new_zeros(())
    d_states = list(d_finals)
    for t, dz_t, d_before, values in backward_steps(lin, d_finals, inject):
        dz[t], d_states = dz_t, d_before
        for k, v in w_out:
            g = values[v].expand(z.shape[1], -1)
            d_units[k] += (g if keep is None else torch.where(keep[t], g, zero)).sum(0)
        for k, pairs in m_out:
            for left, right in zip(pairs[::2], pairs[1::2], strict=True):
                g = values[left] if keep is None else torch.where(keep[t], values[left], zero)
                low = d_matrices[k].dtype
                d_matrices[k] += torch.matmul(g.mT.to(low), values[right].to(low))
    if keep is not None:
        x = torch.where(keep, x, x.new_zeros(()))  # padding may hold anything, a NaN too
    flat = dz.flatten(0, 1)
    dzx = flat[:, : W.shape[0]].to(W.dtype)
    dx = torch.matmul(dzx, W).view_as(x) if need_dx else x.new_empty(0)
    dW = torch.matmul(dzx.mT, x.flatten(0, 1))
    if U.shape[0]:
        before = previous(sequences[0], states[0], lengths, reverse).flatten(0, 1)
        dzh = recurrent_part(flat, column_runs(tape.columns), lin.H)
        dU = torch.matmul(dzh.mT.to(U.dtype), before.to(U.dtype))
    else:
        dU = torch.zeros_like(U)
    return [dx, dW, dU, flat.sum(0), *d_units, *d_matrices, *[d.clone() for d in d_states]]


def previous(sequence: Tensor, first: Tensor, lengths: Tensor | None, reverse: bool) -> Tensor:
    """The state before each step [T, B, .], in the order of x, whatever the direction."""
    if not reverse:
        return torch.cat([first[None], sequence[:-1]])
    before = torch.cat([sequence[1:], first[None]])
    if lengths is not None:
        T = sequence.shape[0]
        starts = torch.arange(1, T + 1, device=sequence.device)[:, None] >= lengths
        before = torch.where(starts[..., None], first, before)
    return before


@lru_cache(maxsize=256)
def column_runs(columns: tuple[Column, ...]) -> tuple[tuple[tuple[int, int], tuple[int, int]], ...]:
    """Neighbouring columns that neighbouring blocks of U belong to: ((first, past) column, (first, past) block)."""
    runs: list[tuple[tuple[int, int], tuple[int, int]]] = []
    for k, column in enumerate(columns):
        if column.h is None:
            continue
        h = column.h
        if runs and runs[-1][0][1] == k and runs[-1][1][1] == h:
            runs[-1] = ((runs[-1][0][0], k + 1), (runs[-1][1][0], h + 1))
        else:
            runs.append(((k, k + 1), (h, h + 1)))
    return tuple(runs)


def recurrent_part(dz: Tensor, runs: Sequence[tuple[tuple[int, int], tuple[int, int]]], H: int) -> Tensor:
    """The columns of dz that have a product with U, in the order of U's blocks."""
    parts = [dz[..., c0 * H : c1 * H] for (c0, c1), _ in sorted(runs, key=lambda run: run[1])]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _order(T: int, reverse: bool) -> range:
    return range(T - 1, -1, -1) if reverse else range(T)
