"""The operators behind `unroll`, as torch's dispatcher sees them: inference, forward, backward.

An operator takes the tape as text, so that it is complete in itself: it can be compiled, exported and sent to another
process. `throughtime::infer` gives back, in one list, the states at every step and the last states; and
`throughtime::unroll` besides that what its backend keeps for the backward pass, `throughtime::unroll_backward`.
How they are differentiated stands in `derivative`. Each operator is a plain function too, of the same arguments: where
nobody watches (`eager`), it is called directly, for a pass through the dispatcher costs more than some steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
from torch import Tensor

from throughtime.engine import low_memory
from throughtime.engine.backends import BACKENDS
from throughtime.engine.rules import with_rule
from throughtime.engine.tape import Tape, loads


@lru_cache(maxsize=512)
def tape_of(program: str, clip: float | None, truncated: bool) -> Tape:
    """The tape of a program, with its training rule."""
    return with_rule(loads(program), clip, truncated)


def chosen_dtypes(x: Tensor) -> AbstractContextManager:
    """Whoever calls has chosen the dtypes; a surrounding autocast must not choose again, product by product."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


# --- inference: an operator without a derivative, which costs a step of a stream little ---

torch.library.define(
    "throughtime::infer",
    "(str program, Tensor x, Tensor W, Tensor U, Tensor b, Tensor[] units, Tensor[] matrices, Tensor[] states, "
    "Tensor? lengths, bool reverse, str backend, str memory, int shown) -> Tensor[]",
)


def infer(program, x, W, U, b, units, matrices, states, lengths, reverse, backend, memory, shown):
    tape, call = tape_of(program, None, False), (x, W, U, b, units, matrices, states, lengths, reverse)
    with chosen_dtypes(x):
        if memory == "low":
            sequences, finals, _ = low_memory.forward(BACKENDS[backend], tape, *call, shown)
        else:
            sequences, finals, _ = BACKENDS[backend].forward(tape, *call, False)
    return [*sequences, *finals]


torch.library.impl("throughtime::infer", "default", infer)


@torch.library.register_fake("throughtime::infer")
def _(program, x, W, U, b, units, matrices, states, lengths, reverse, backend, memory, shown):
    return _fake_states(x, states, shown if memory == "low" else len(states))


def _fake_states(x: Tensor, states: Sequence[Tensor], shown: int) -> list[Tensor]:
    T, B, _ = x.shape
    sequences = [s.new_empty(T, B, s.shape[1]) if k < shown else s.new_empty(0) for k, s in enumerate(states)]
    return [*sequences, *(s.new_empty(B, s.shape[1]) for s in states)]


# --- with gradients ---


def unroll(
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
    memory: str,
    shown: int,
) -> list[Tensor]:
    tape, call = tape_of(program, clip, truncated), (x, W, U, b, units, matrices, states, lengths, reverse)
    with chosen_dtypes(x):
        if memory == "low":
            sequences, finals, saved = low_memory.forward(BACKENDS[backend], tape, *call, shown)
        else:
            sequences, finals, saved = BACKENDS[backend].forward(tape, *call, True)
    return [*sequences, *finals, saved]


unroll_op = torch.library.custom_op("throughtime::unroll", unroll, mutates_args=())


@unroll_op.register_fake
def _(program, x, W, U, b, units, matrices, states, lengths, reverse, clip, truncated, backend, memory, shown):
    (T, B, _), first = x.shape, states[0]
    if memory == "low":
        width = sum(s.shape[1] for s in states)
        return [*_fake_states(x, states, shown), first.new_empty(low_memory.number_of_parts(T), B, width)]
    tape = tape_of(program, clip, truncated)
    # A program is made for one H: as a symbol it becomes a number here, T and B stay symbols.
    H, P = int(b.shape[0]) // len(tape.columns), int(first.shape[1])
    width = BACKENDS[backend].saved_width(tape, H, P, [(int(m.shape[0]), int(m.shape[1])) for m in matrices])
    return [*_fake_states(x, states, len(states)), first.new_empty(T, B, width)]


def unroll_backward(
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
    memory: str,
    need_dx: bool,
) -> list[Tensor]:
    tape, call = tape_of(program, clip, truncated), (x, W, U, b, units, matrices, states, lengths)
    rest = (saved, d_sequences, d_finals, reverse, truncated, need_dx)
    with chosen_dtypes(x):
        if memory == "low":  # the states of a part are worked out anew, `sequences` is empty
            return low_memory.backward(BACKENDS[backend], tape, *call, *rest)
        return BACKENDS[backend].backward(tape, *call, sequences, *rest)


backward_op = torch.library.custom_op("throughtime::unroll_backward", unroll_backward, mutates_args=())


@backward_op.register_fake
def _(
    program, x, W, U, b, units, matrices, states, lengths, sequences, saved, d_sequences, d_finals,
    reverse, clip, truncated, backend, memory, need_dx,
):  # fmt: skip
    def like(v: Tensor) -> Tensor:
        return v.new_empty(v.shape)

    dx = like(x) if need_dx else x.new_empty(0)
    return [dx, *(like(v) for v in (W, U, b, *units, *matrices, *states))]
