"""From one captured training step to what a record keeps of it: norms, and the gradient through each recurrence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from throughtime.diagnosis.following import LEAST, Follower, row_work, rows_within
from throughtime.diagnosis.history import Seen
from throughtime.errors import FlowError
from throughtime.flow import Capture, Captured, StepRecurrence
from throughtime.flow.capture_runs import StepRun
from throughtime.flow.capture_sample import sample, work_of

WORK = 1e9  # multiplications that measuring one stack of recurrences may take: some tenths of a second on one core
MOST = 16  # recurrences that are measured in one step; one that has more is told of


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """||g|| of every parameter that has a gradient, by name."""
    return {name: _norm(p.grad) for name, p in model.named_parameters() if p.grad is not None}


def _norm(g: Tensor) -> float:
    g = g.detach()
    g = g.coalesce().values() if g.is_sparse else g
    return float(torch.linalg.vector_norm(g, dtype=torch.float64 if g.dtype == torch.float64 else torch.float32))


def chosen(found: Capture) -> tuple[list[list[Captured]], list[str]]:
    """The recurrences of a capture worth measuring, those of one stack together, and what is to be said of the rest.

    Calls that no gradient came back to are left out, unless the module has no others: they belong to a forward pass
    that was made for its values only. Of several runs of one module the longest is taken.
    """
    stacks: dict[int, list[Captured]] = {}
    for one in found.recurrences:
        stacks.setdefault(id(one._run), []).append(one)
    by_name: dict[str, list[list[Captured]]] = {}
    for stack in stacks.values():
        by_name.setdefault(stack[0].name, []).append(stack)
    kept, notes = [], []
    for name, those in by_name.items():
        reached = [s for s in those if any(call.reached for call in s[0]._run.calls)]
        kept.append(max(reached or those, key=lambda s: work_of(s[0])[0]))
        if len(reached) > 1:
            notes.append(f"{name} ran {len(reached)} times in this step; the longest run was measured")
    if len(kept) > MOST:
        notes.append(f"{len(kept)} modules ran as recurrences in this step; the first {MOST} were measured")
    return kept[:MOST], notes


class Plan(NamedTuple):
    """How much of a stack is followed: so many sequences and loss steps, where a loss enters at every step; about how
    many multiplications that takes; and whether it is a module of the user's own."""

    sequences: int
    rows: int
    work: float
    own: bool


def planned(stack: Sequence[Captured], work: float) -> Plan:
    """What `observe` will follow of a stack with `work` multiplications, told without running anything."""
    T, B, weights = work_of(stack[0])
    run = stack[0]._run
    own = isinstance(run, StepRun)
    n = 1 if own else min(B, _sequences(T, weights, work))
    each = row_work(run) if own else T / 2 * n * weights
    rows = rows_within(work, T, each)
    return Plan(n, rows, rows * each, own)


def observe(stacks: Sequence[Sequence[Captured]], turn: int = 0, work: float = WORK) -> Iterator[Seen]:
    """Measures what was `chosen`, each stack with about `work` multiplications: fewer sequences of the batch, and fewer
    loss steps, where the whole is too large; in float32, whose errors are far below what a horizon shows. `turn` is the
    number of the measurement: other sequences each time."""
    for stack in stacks:
        some, of = sampled(stack, turn, work, torch.float32)
        follower = Follower(work)
        for captured in some:
            yield _seen(captured, follower, of)


def sampled(
    stack: Sequence[Captured], turn: int, work: float, dtype: torch.dtype = torch.float64
) -> tuple[list[Captured], str | None]:
    """The stack over as many sequences as `work` multiplications allow, 1 at least, in `dtype`; and which part that is,
    in words, None for all."""
    T, B, weights = work_of(stack[0])
    n = _sequences(T, weights, work)
    if n >= B:
        return sample(stack, None, dtype, True), None
    index = ((torch.arange(n) * B) // n + turn) % B
    return sample(stack, index.sort().values, dtype, True), f"{n} of {B} sequences"


def _sequences(T: int, weights: int, work: float) -> int:
    return max(1, int(work / (min(LEAST + 1, T) * max(T / 2, 1) * weights)))  # the last loss step may come on top


def _seen(captured: Captured, follower: Follower, of: str | None) -> Seen:
    where = Seen(
        captured.name, "", captured.layer, captured.reverse, len(captured.calls), carried=captured.carried, estimated=of
    )
    try:
        recurrence = captured.recurrence
        cell = recurrence.kind if isinstance(recurrence, StepRecurrence) else recurrence.cell.name
        where = replace(where, cell=cell, steps=recurrence.output.shape[0])
        flow, kind, _ = follower.flow(captured)
        profile, horizon, half_life = flow.profile(), flow.horizon(), flow.half_life()
    except FlowError as error:
        return replace(where, problem=str(error))
    except Exception as error:  # ours, not the user's: it must not end the training
        return replace(where, problem=f"it could not be measured ({type(error).__name__}: {error})")
    lags = _some_lags(len(profile))
    told = " and ".join(v for v in (kind, of) if v)
    sizes = tuple(float(profile[d]) for d in lags)
    return replace(where, horizon=horizon, half_life=half_life, lags=lags, sizes=sizes, estimated=told or None)


def _some_lags(n: int) -> tuple[int, ...]:
    """0, 1, 2, 3, 4, 6, 8, 12, 16, ... and the last: two to each doubling."""
    several = {d for i in range(20) for d in (2**i, 3 * 2**i // 2)}
    return tuple(sorted(d for d in {0, *several, n - 1} if d < n))
