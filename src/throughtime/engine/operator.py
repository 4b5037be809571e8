"""The one operator behind `unroll`: forward, backward and double backward, as torch's dispatcher sees them.

The operator takes the tape as text, so that it is complete in itself: it can be compiled, exported and sent to
another process. `throughtime::unroll` gives back, in one list, the states at every step, the last states, and what its
backend keeps for the backward pass. `throughtime::unroll_backward` is its derivative, by the derived tape; the
derivative of that is the reference loop's, which autograd differentiates as often as asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from throughtime.engine import interpret, reference
from throughtime.engine.backends import BACKENDS
from throughtime.engine.rules import with_rule
from throughtime.engine.tape import Tape, loads


def _tape(program: str, clip: float | None, truncated: bool) -> Tape:
    return with_rule(loads(program), clip, truncated)


@torch.library.custom_op("throughtime::unroll", mutates_args=())
def unroll_op(
    program: str,
    x: Tensor,
    W: Tensor,
    U: Tensor,
    b: Tensor,
    units: Sequence[Tensor],
    matrices: Sequence[Tensor],
    states: Sequence[Tensor],
    lengths: Tensor | None,
    reverse: bool,
    clip: float | None,
    truncated: bool,
    backend: str,
    save: bool,
) -> list[Tensor]:
    # Whoever calls has chosen the dtypes; a surrounding autocast must not choose again, product by product.
    with torch.autocast(x.device.type, enabled=False):
        sequences, finals, saved = BACKENDS[backend].forward(
            _tape(program, clip, truncated), x, W, U, b, units, matrices, states, lengths, reverse, save
        )
    return [*sequences, *finals, saved]


@unroll_op.register_fake
def _(program, x, W, U, b, units, matrices, states, lengths, reverse, clip, truncated, backend, save):
    (T, B, _), first = x.shape, states[0]
    sequences = [s.new_empty(T, B, s.shape[1]) for s in states]
    finals = [s.new_empty(B, s.shape[1]) for s in states]
    if not save:
        return [*sequences, *finals, first.new_empty(0)]
    tape = _tape(program, clip, truncated)
    # A program is made for one H: as a symbol it becomes a number here, T and B stay symbols.
    H, P = int(b.shape[0]) // len(tape.columns), int(first.shape[1])
    width = BACKENDS[backend].saved_width(tape, H, P, [(int(m.shape[0]), int(m.shape[1])) for m in matrices])
    return [*sequences, *finals, first.new_empty(T, B, width)]


@torch.library.custom_op("throughtime::unroll_backward", mutates_args=())
def backward_op(
    program: str,
    x: Tensor,
    W: Tensor,
    U: Tensor,
    b: Tensor,
    units: Sequence[Tensor],
    matrices: Sequence[Tensor],
    states: Sequence[Tensor],
    lengths: Tensor | None,
    sequences: Sequence[Tensor],
    saved: Tensor,
    d_sequences: Sequence[Tensor],
    d_finals: Sequence[Tensor],
    reverse: bool,
    clip: float | None,
    truncated: bool,
    backend: str,
    need_dx: bool,
) -> list[Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        return BACKENDS[backend].backward(
            _tape(program, clip, truncated),
            x, W, U, b, units, matrices, states, lengths, sequences, saved, d_sequences, d_finals,
            reverse, truncated, need_dx,
        )  # fmt: skip


@backward_op.register_fake
def _(
    program, x, W, U, b, units, matrices, states, lengths, sequences, saved, d_sequences, d_finals,
    reverse, clip, truncated, backend, need_dx,
):  # fmt: skip
    def like(v: Tensor) -> Tensor:
        return v.new_empty(v.shape)

    dx = like(x) if need_dx else x.new_empty(0)
    return [dx, *(like(v) for v in (W, U, b, *units, *matrices, *states))]


# --- the derivative of unroll -----------------------------------------------------------------------------------


def _setup(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    program, x, W, U, b, units, matrices, states, lengths, *rule, _ = inputs
    ctx.program, ctx.rule = program, tuple(rule)  # reverse, clip, truncated, backend
    ctx.sizes = (len(units), len(matrices), len(states))
    ctx.has_lengths = lengths is not None
    ctx.need_dx = x.requires_grad
    kept = [x, W, U, b, *units, *matrices, *states]
    if lengths is not None:
        kept.append(lengths)
    ctx.n_kept = len(kept)
    S = len(states)
    ctx.save_for_backward(*kept, *output[:S], output[-1])
    ctx.shapes = [(tuple(o.shape), o.dtype, o.device) for o in output[: 2 * S]]
    ctx.set_materialize_grads(False)


def _derivative(ctx: Any, grads: list[Tensor | None]) -> tuple:
    n_units, n_matrices, S = ctx.sizes
    saved = list(ctx.saved_tensors)
    x, W, U, b, *rest = saved[: ctx.n_kept]
    lengths = rest.pop() if ctx.has_lengths else None
    units, matrices, states = _split(rest, n_units, n_matrices, S)
    *sequences, kept = saved[ctx.n_kept :]
    # An output that the loss does not use has no gradient: a zero that takes no memory stands for it.
    d = [
        torch.zeros((), dtype=dtype, device=device).expand(shape) if g is None else g
        for g, (shape, dtype, device) in zip(grads, ctx.shapes, strict=False)
    ]
    out = torch.ops.throughtime.unroll_backward(
        ctx.program, x, W, U, b, units, matrices, states, lengths, sequences, kept, d[:S], d[S:],
        *ctx.rule, ctx.need_dx,
    )  # fmt: skip
    dx, dW, dU, db, *rest = out
    d_units, d_matrices, d_states = _split(rest, n_units, n_matrices, S)
    dx = dx if ctx.need_dx else None
    return None, dx, dW, dU, db, d_units, d_matrices, d_states, None, None, None, None, None, None


def _split(values: Sequence[Tensor], *sizes: int) -> list[list[Tensor]]:
    out, i = [], 0
    for n in sizes:
        out.append(list(values[i : i + n]))
        i += n
    return out


unroll_op.register_autograd(_derivative, setup_context=_setup)


# --- the derivative of the derivative ---------------------------------------------------------------------------


def _setup_backward(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    # The sequences and what was saved come from the forward pass: the reference works them out anew, differentiably.
    program, x, W, U, b, units, matrices, states, lengths, _, _, d_sequences, d_finals, *rule, _ = inputs
    ctx.program, ctx.rule = program, tuple(rule)
    ctx.sizes = (len(units), len(matrices), len(states))
    ctx.has_lengths = lengths is not None
    kept = [x, W, U, b, *units, *matrices, *states, *d_sequences, *d_finals]
    ctx.save_for_backward(*kept, *([lengths] if lengths is not None else []))
    ctx.set_materialize_grads(False)


def _second_derivative(ctx: Any, grads: list[Tensor | None]) -> tuple:
    n_units, n_matrices, S = ctx.sizes
    reverse, clip, truncated, _ = ctx.rule
    saved = list(ctx.saved_tensors)
    lengths = saved.pop() if ctx.has_lengths else None
    tape = _tape(ctx.program, clip, truncated)

    def step(values: list[Tensor]) -> list[Tensor]:
        return [v for (v,) in interpret.run(tape, values)]

    with torch.enable_grad():
        # Fresh names for the inputs: x may itself depend on W, and that path is not this operator's to follow.
        inputs = [v.view_as(v) if v.requires_grad else v.detach().requires_grad_() for v in saved]
        primal, d = inputs[: -2 * S], inputs[-2 * S :]
        x, W, U, b, *rest = primal
        units, matrices, states = _split(rest, n_units, n_matrices, S)
        outputs = reference.unroll(step, tape.columns, x, W, U, b, units, matrices, states, lengths, reverse, truncated)
        shown = [v for part in outputs for v in part]
        first = torch.autograd.grad(shown, primal, d, create_graph=True, materialize_grads=True)
        pairs = [
            (v, g)
            for v, g in zip(first, grads, strict=True)
            if g is not None and v.requires_grad and g.shape == v.shape
        ]
        second: Sequence[Tensor | None] = [None] * len(inputs)
        if pairs:
            second = torch.autograd.grad(
                [v for v, _ in pairs], inputs, [g for _, g in pairs],
                create_graph=torch.is_grad_enabled(), allow_unused=True,
            )  # fmt: skip
    primal_grads, d_grads = list(second[: -2 * S]), list(second[-2 * S :])
    dx, dW, dU, db, *rest2 = primal_grads
    d_units, d_matrices, d_states = _split(rest2, n_units, n_matrices, S)  # type: ignore[arg-type]
    nothing = [None] * S
    return (
        None, dx, dW, dU, db, d_units, d_matrices, d_states, None, nothing, None, d_grads[:S], d_grads[S:],
        None, None, None, None, None,
    )  # fmt: skip


backward_op.register_autograd(_second_derivative, setup_context=_setup_backward)
