"""The derivatives of the operators, as autograd sees them.

The derivative of `throughtime::unroll` is `throughtime::unroll_backward`, by the derived tape; the derivative of that
is the reference loop's, which autograd differentiates as often as asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from throughtime.engine import interpret, operator, reference
from throughtime.engine.eager import unwatched
from throughtime.engine.operator import backward_op, tape_of, unroll_op


def unroll(*args: Any) -> Sequence[Tensor]:
    """`throughtime::unroll`, to be differentiated: the states at every step and the last states."""
    tensors = [*args[1:5], *args[5], *args[6], *args[7]]
    return _Eager.apply(args, *tensors) if unwatched(tensors) else unroll_op(*args)


class _Eager(torch.autograd.Function):
    """The same as the operator and its derivative, for a fifth of the time that passing through them costs."""

    @staticmethod
    def forward(ctx: Any, args: tuple, *tensors: Tensor) -> tuple[Tensor, ...]:  # the tensors of args, for autograd
        output = operator.unroll(*args)
        _setup(ctx, args, output)
        return tuple(output[:-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        _, dx, dW, dU, db, d_units, d_matrices, d_states, *_ = _derivative(ctx, grads)
        return None, dx, dW, dU, db, *d_units, *d_matrices, *d_states


def _setup(ctx: Any, inputs: tuple, output: Sequence[Tensor]) -> None:
    program, x, W, U, b, units, matrices, states, lengths, *rule, _ = inputs
    ctx.program, ctx.rule = program, tuple(rule)  # reverse, clip, truncated, backend, memory
    ctx.sizes = (len(units), len(matrices), len(states))
    ctx.has_lengths = lengths is not None
    ctx.need_dx = x.requires_grad
    kept = [x, W, U, b, *units, *matrices, *states]
    if lengths is not None:
        kept.append(lengths)
    ctx.n_kept = len(kept)
    S = len(states)
    sequences = () if rule[-1] == "low" else output[:S]
    ctx.save_for_backward(*kept, *sequences, output[-1])
    ctx.shapes = [(tuple(o.shape), o.dtype, o.device) for o in output[: 2 * S]]
    ctx.set_materialize_grads(False)


def _derivative(ctx: Any, grads: Sequence[Tensor | None]) -> tuple:
    n_units, n_matrices, S = ctx.sizes
    reverse, clip, truncated, chosen, memory = ctx.rule
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
    direct = not torch.is_grad_enabled() and unwatched()
    backward = operator.unroll_backward if direct else torch.ops.throughtime.unroll_backward
    out = backward(
        ctx.program, x, W, U, b, units, matrices, states, lengths, sequences, kept, d[:S], d[S:],
        reverse, clip, truncated, chosen, memory, ctx.need_dx,
    )  # fmt: skip
    dx, dW, dU, db, *rest = out
    d_units, d_matrices, d_states = _split(rest, n_units, n_matrices, S)
    dx = dx if ctx.need_dx else None
    return None, dx, dW, dU, db, d_units, d_matrices, d_states, *[None] * 7


def _split(values: Sequence[Tensor], *sizes: int) -> list[list[Tensor]]:
    out, i = [], 0
    for n in sizes:
        out.append(list(values[i : i + n]))
        i += n
    return out


unroll_op.register_autograd(_derivative, setup_context=_setup)


# --- the derivative of the derivative ---


def _setup_backward(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    # The sequences and what was saved come from the forward pass: the reference works them out anew, differentiably.
    program, x, W, U, b, units, matrices, states, lengths, sequences, _, d_sequences, d_finals, *rule, _ = inputs
    ctx.program, ctx.rule = program, tuple(rule)
    ctx.sizes, ctx.n_sequences = (len(units), len(matrices), len(states)), len(sequences)
    ctx.has_lengths = lengths is not None
    kept = [x, W, U, b, *units, *matrices, *states, *d_sequences, *d_finals]
    ctx.save_for_backward(*kept, *([lengths] if lengths is not None else []))
    ctx.set_materialize_grads(False)


def _second_derivative(ctx: Any, grads: list[Tensor | None]) -> tuple:
    n_units, n_matrices, S = ctx.sizes
    reverse, clip, truncated, _, _ = ctx.rule
    saved = list(ctx.saved_tensors)
    lengths = saved.pop() if ctx.has_lengths else None
    tape = tape_of(ctx.program, clip, truncated)

    def step(values: list[Tensor]) -> list[Tensor]:
        return [v for (v,) in interpret.run(tape, values)]

    with torch.enable_grad():
        # Fresh names for the inputs: x may itself depend on W, and that path is not this operator's to follow.
        inputs = [v.view_as(v) if v.requires_grad else v.detach().requires_grad_() for v in saved]
        primal, d = inputs[: -2 * S], inputs[-2 * S :]
        x, W, U, b, *rest = primal
        units, matrices, states = _split(rest, n_units, n_matrices, S)
        outputs = reference.unroll(step, tape.columns, x, W, U, b, units, matrices, states, lengths, reverse, truncated)
        # A sequence that was not shown has an empty gradient.
        shown = [(v, g) for v, g in zip([v for part in outputs for v in part], d, strict=True) if g.dim() == v.dim()]
        first = torch.autograd.grad(
            [v for v, _ in shown], primal, [g for _, g in shown], create_graph=True, materialize_grads=True
        )
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
    sequences = [None] * ctx.n_sequences
    return (
        None, dx, dW, dU, db, d_units, d_matrices, d_states, None, sequences, None, d_grads[:S], d_grads[S:],
        *[None] * 6,
    )  # fmt: skip


backward_op.register_autograd(_second_derivative, setup_context=_setup_backward)
