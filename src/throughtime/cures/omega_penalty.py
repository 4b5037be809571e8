"""Pascanu's regulariser Omega: the error that flows back through time is asked to keep its size at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from throughtime.cells import Cell
from throughtime.cures.live import LiveRecurrence, LiveStack
from throughtime.diagnosis.parts import parts
from throughtime.engine import torch_backend
from throughtime.engine.operands import operands
from throughtime.engine.rules import with_rule
from throughtime.engine.trace import tape_of, trace
from throughtime.errors import ConfigError, FlowError
from throughtime.flow.capture import Capture, Captured
from throughtime.flow.ran import net_inputs
from throughtime.flow.recurrence import Recurrence
from throughtime.nn.stack import Weights


def omega(
    layer: nn.Module,
    x: Tensor,
    loss: Callable[[Tensor], Tensor] | Tensor,
    state: Any = None,
    *,
    exact: bool = True,
    floor: float = 0.0,
) -> Tensor:
    """Omega of a recurrent layer on one batch, as a penalty to be added to the loss (Pascanu 2013).

        Omega = sum_t ( || e_t ds_t/ds_{t-1} || / || e_t ||  -  1 )^2,      e_t = dL/ds_t, the total gradient

    summed over steps, layers and directions, averaged over the batch; s = (h, c, ...) is all that is carried. It is 0
    where every step passes the error on at its full length, and takes no interest in directions that no error has.

    layer: one of torch.nn's RNN, LSTM, GRU or of throughtime.nn.     x, state: as its call takes them, not packed.
    loss:  a function from its output y to the scalar loss, or the gradient dL/dy itself, shaped as y.
    exact: the derivative of Omega by everything: weights, x, and what the loss holds. False: e_t and s_t count as
           constants, as in the paper, so that only the recurrent weights and biases of this layer move.
    floor: steps where ||e_t|| of a sample is at most this are left out (the paper's code: 1e-10); an error that is
           exactly 0 has no length to keep, and is left out in any case.

    Cost: one more forward pass and, step by step in torch, a backward pass; exact keeps the graph of it all, about
    twice that. Memory grows with T as that of back-propagation does.
    Raises ConfigError for other modules and for dropout that is switched on, FlowError where the loss does not depend
    on y or e_t is not finite.
    """
    _check(floor)
    keep_graph = exact and torch.is_grad_enabled()
    with torch.set_grad_enabled(keep_graph):
        stack = LiveStack(layer, x, state)
        g = stack.time_first(_gradient(stack.output, loss, keep_graph))
        sent = _down(stack, g, x.shape[-1])
    total = g.new_zeros(())
    for r, (e, pulled) in sent:
        if not exact:
            pulled = _one_step(r.cell, r.weights, r.x, r.before, e, False)
        total = total + _terms(e, pulled, floor)
    return total


def omega_captured(captured: Capture | Sequence[Captured], model: nn.Module, *, floor: float = 0.0) -> Tensor:
    """Omega of every recurrence of a model, as captured while it ran: loops over cells, packed sequences, dropout too.

        with throughtime.capture(model) as captured:
            loss = criterion(model(x), target)
            loss.backward()
        (2.0 * omega_captured(captured, model)).backward()      # adds to the gradients
        optimizer.step()

    The definition is that of `omega` with exact=False: errors and states are constants, as in the paper, and the
    gradient goes to the recurrent weights and biases. In float64, whatever the model's dtype.
    Cost: the measurement of the capture, a forward and a backward pass step by step in float64, and one step's
    derivative for all steps at once.

    Raises FlowError where nothing was captured and for recurrences that are modules of your own, of which the
    equations are not known.
    """
    if isinstance(captured, Capture):
        captured.check()
        captured = captured.recurrences
    _check(floor)
    live = {(p.module or p.kind, p.layer or 0, p.reverse): p for p in parts(model)}
    terms = []
    for c in captured:
        r, part = c.recurrence, live.get((c.name, c.layer, c.reverse))
        if not isinstance(r, Recurrence) or part is None:
            raise FlowError(f"{c}: a module of your own, whose equations are not known; Omega needs cells or layers")
        with torch.no_grad():
            finals = r.at_last_step([c.final.get(name) for name in r.cell.states])
            direct = [c.gradient if f is None else c.gradient + f for f in finals[:1]] + finals[1:]
            e = _walk(r.linearised(), [torch.zeros_like(s) for s in r.operands.states], direct).errors
        before = [
            torch_backend.previous(s, first, r.lengths, r.reverse)
            for s, first in zip(r.sequences, r.operands.states, strict=True)
        ]
        pulled = _one_step(r.cell, _doubled(part.weights), r.x.detach().double(), before, e, r.truncated)
        terms.append(_terms(e, pulled, floor, r.keep))
    if not terms:
        raise FlowError("no recurrence was captured")
    return torch.stack(terms).sum()


def _gradient(y: Tensor, loss: Callable[[Tensor], Tensor] | Tensor, keep_graph: bool) -> Tensor:
    if isinstance(loss, Tensor):
        if loss.shape != y.shape:
            raise FlowError(f"the gradient dL/dy must be shaped as y, {list(y.shape)}; came {list(loss.shape)}")
        return loss
    seen = y if y.requires_grad else y.detach().requires_grad_()
    with torch.enable_grad():
        value = loss(seen)
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        raise FlowError("the loss must be one number that depends on the y it is given")
    g = torch.autograd.grad(value, seen, create_graph=keep_graph, allow_unused=True)[0]
    if g is None:
        raise FlowError("the loss does not depend on the layer's output y; compute it from the y it is given")
    if not bool(g.isfinite().all()):
        raise FlowError("the gradient that enters from the loss is NaN or infinite")
    return g


class Walked(NamedTuple):
    """Sent back through time, each [T, B, .]: e_t and e_t ds_t/ds_{t-1} state by state, and dL/dz."""

    errors: list[Tensor]
    pulled: list[Tensor]
    dz: Tensor


def _walk(lin: torch_backend.Linearised, start: list[Tensor], direct: Sequence[Tensor | None]) -> Walked:
    """direct: for each state what enters at every step from outside, [T, B, .] or None."""
    errors: dict[int, list[Tensor]] = {}
    pulled: dict[int, list[Tensor]] = {}
    dz: dict[int, Tensor] = {}

    def inject(t: int, ds: list[Tensor]) -> list[Tensor]:
        errors[t] = [d if g is None else d + g[t] for d, g in zip(ds, direct, strict=True)]
        return errors[t]

    for t, here, before, _ in torch_backend.backward_steps(lin, start, inject):
        pulled[t], dz[t] = before, here

    def over_time(found: dict[int, list[Tensor]]) -> list[Tensor]:
        return [torch.stack([found[t][k] for t in sorted(found)]) for k in range(len(start))]

    return Walked(over_time(errors), over_time(pulled), torch.stack([dz[t] for t in sorted(dz)]))


def _down(stack: LiveStack, g: Tensor, inputs: int) -> list[tuple[LiveRecurrence, tuple[list[Tensor], list[Tensor]]]]:
    """Sends g = dL/dy [T, B, .] down through the stack: of each recurrence, e_t and e_t ds_t/ds_{t-1}."""
    sent = []
    above: Tensor | None = None
    end = g.shape[-1]
    for k in reversed(range(len(stack.recurrences))):
        here = stack.recurrences[k]
        widths = [r.output.shape[-1] for r in here]
        outside = above
        if stack.skip or above is None:
            shown = g[..., end - sum(widths) : end]
            end -= sum(widths)
            outside = shown if above is None else above + shown
        assert outside is not None
        below: list[Tensor] = []
        for r, part in zip(here, outside.split(widths, -1), strict=True):
            start = [torch.zeros_like(s) for s in r.operands.states]
            found = _walk(r.linear(), start, [part, *[None] * (len(start) - 1)])
            sent.append((r, (found.errors, found.pulled)))
            if k:
                below.append(_to_input(r, found.dz))
        if k:
            above = sum(below[1:], below[0])[..., inputs if stack.skip else 0 :]
    return sent


def _to_input(r: LiveRecurrence, dz: Tensor) -> Tensor:
    W = r.operands.W
    dx = torch.matmul(dz[..., : W.shape[0]], W)
    if type(r.cell).input is Cell.input:
        return dx
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        x = r.x if keep and r.x.requires_grad else r.x.detach().requires_grad_()
        return dx * torch.autograd.grad(r.cell.input(x).sum(), x, create_graph=keep)[0]


def _one_step(
    cell: Cell, w: Weights, x: Tensor, before: Sequence[Tensor], e: Sequence[Tensor], truncated: bool
) -> list[Tensor]:
    """e_t ds_t/ds_{t-1} by the weights alone, e_t and the states being constants: all steps as one batch."""
    T, B = x.shape[:2]
    states = [s.detach().flatten(0, 1) for s in before]
    tensors = (w.weight_ih, w.weight_hh, w.bias_ih, w.bias_hh, w.units, w.matrices)
    v = operands(cell, x.detach().flatten(0, 1)[None], *tensors, states)
    z = net_inputs(tape_of(cell), v, states[0][None])
    tape = with_rule(trace(cell), None, truncated)
    lin = torch_backend.linearise(
        tape, z, v.U, v.units, v.matrices, v.states, [s[None] for s in states], None, False, truncated
    )
    step = next(torch_backend.backward_steps(lin, [v.detach().flatten(0, 1) for v in e], lambda t, ds: ds))
    return [v.unflatten(0, (T, B)) for v in step[2]]


def _doubled(w: Weights) -> Weights:
    def double(v: Tensor | None) -> Tensor | None:
        return None if v is None else v.double()

    return Weights(
        w.weight_ih.double(), double(w.weight_hh), double(w.bias_ih), double(w.bias_hh),
        tuple(u.double() for u in w.units), tuple(m.double() for m in w.matrices),
    )  # fmt: skip


def _terms(e: Sequence[Tensor], pulled: Sequence[Tensor], floor: float, keep: Tensor | None = None) -> Tensor:
    """sum_t (||pulled_t|| / ||e_t|| - 1)^2, averaged over the batch; scaled first, so that no square underflows."""
    E, P = torch.cat(list(e), -1), torch.cat(list(pulled), -1)
    largest = E.detach().abs().amax(-1)
    if not bool(largest.isfinite().all()):
        raise FlowError("the error that flows back through time has grown beyond the largest number; clip it first")
    scale = torch.where(largest > 0, largest, 1.0)[..., None]
    size = (E / scale).norm(dim=-1)
    counts = (largest > torch.finfo(E.dtype).tiny) & (size.detach() * scale[..., 0] > floor)
    if keep is not None:
        counts = counts & keep[..., 0]
    ratio = (P / scale).norm(dim=-1) / torch.where(counts, size, 1.0)
    return torch.where(counts, (ratio - 1) ** 2, 0.0).sum(0).mean()


def _check(floor: float) -> None:
    if not floor >= 0:
        raise ConfigError(f"floor, the least size of an error that counts, must be at least 0; came {floor}")
