"""Batches of a run's data as a diagnosis reads them, each with the state that the model comes to it with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from throughtime.train.data.batch import Batch, Source
from throughtime.train.data.schema import Schema
from throughtime.train.data.streams import Streams
from throughtime.train.heads import Softmax
from throughtime.train.model import SequenceModel
from throughtime.train.states import first_of

SIDE_BY_SIDE = 8  # windows of one series that are laid beside each other, so that there are sequences to compare
WALKED = 64  # windows that are read, at most, in search of targets


@dataclass(frozen=True)
class Looked:
    """A batch and the state before it, None for zeros."""

    batch: Batch
    state: Any = None

    @property
    def args(self) -> tuple[Any, ...]:
        """What the model is called with."""
        if self.batch.lengths is not None:
            return self.batch.inputs, self.state, self.batch.lengths
        return (self.batch.inputs,) if self.state is None else (self.batch.inputs, self.state)

    def pair(self, schema: Schema) -> tuple[tuple[Any, ...], Tensor]:
        """Inputs and targets for `diagnose`; see `mean_loss`."""
        return self.args, marked(schema, self.batch)


def marked(schema: Schema, batch: Batch) -> Tensor:
    """The targets; where one does not count, -1 in place of a class and NaN in place of numbers."""
    classes = isinstance(schema.head, Softmax)
    y = batch.targets.long() if classes else batch.targets.float()
    if batch.scored is None:
        return y
    there = batch.scored.view(*batch.scored.shape, *(1,) * (y.dim() - 2))
    return y.masked_fill(~there, -1 if classes else float("nan"))


def mean_loss(schema: Schema) -> Callable[[tuple[Tensor, Any], Tensor], Tensor]:
    """The loss of a model's output and `marked` targets: the mean of the head's over all that count; 0 of none."""
    head = schema.head

    def loss(out: tuple[Tensor, Any], targets: Tensor) -> Tensor:
        real = targets.is_floating_point()
        there = ~targets.isnan() if real else targets >= 0
        there = there.flatten(2).all(-1) if there.dim() > 2 else there
        each = head.loss(out[0], targets.nan_to_num() if real else targets.clamp_min(0))
        return each[there].sum() / there.sum().clamp_min(1)

    return loss


@torch.no_grad()
def look(model: SequenceModel, source: Source, most: int) -> list[Looked]:
    """Up to `most` batches that have targets, the state carried as in training.

    Of a long series the first window only brings the state there, where there are several, and windows are laid side by
    side where few streams are. Of whole sequences the batches are spread over all of them, which are sorted by length;
    of their windows those with the most targets are taken.
    """
    if isinstance(source, Streams):
        return _windows(model, source, most)
    whole = not any(source.batch(n).carried for n in range(min(len(source), 2)))
    count = len(source)
    spread = sorted({round(n * (count - 1) / max(1, most - 1)) for n in range(most)}) if whole else range(count)
    found: list[Looked] = []
    state: Any = None
    for n in list(spread)[:WALKED]:
        batch = source.batch(n)
        before = first_of(state, batch.inputs.shape[1]) if batch.carried else None
        if batch.count:
            found.append(Looked(batch, before))
        if not whole:
            state = model(batch.inputs, before, batch.lengths)[1]
    return _even_first(found if whole else sorted(found, key=lambda v: -v.batch.count)[:most])


def _windows(model: SequenceModel, streams: Streams, most: int) -> list[Looked]:
    found: list[Looked] = []
    state: Any = None
    side = max(1, -(-SIDE_BY_SIDE // streams.inputs.shape[0]))
    for n in range(len(streams)):
        if len(found) == most * side:
            break
        batch = streams.batch(n)
        inputs = batch.inputs if batch.inputs.is_floating_point() else batch.inputs.long()
        batch = replace(batch, inputs=inputs)
        full = batch.count == batch.targets.shape[0] * batch.targets.shape[1]
        if batch.count and (n or len(streams) == 1):
            found.append(Looked(batch, state))
        if full and len(found) > 1 and found[0].batch.scored is not None and not bool(found[0].batch.scored.all()):
            found.pop(0)  # its first steps bring the state there and have no loss
        state = model(inputs, state)[1]
    if side == 1 or not found:
        return found[:most]
    T = max(len(v.batch.inputs) for v in found)
    even = [v for v in found if len(v.batch.inputs) == T and v.state is not None] or found[:1]
    return [_beside(even[n : n + side]) for n in range(0, len(even) - len(even) % side or 1, side)][:most]


def _beside(those: list[Looked]) -> Looked:
    """Windows that follow one another as the sequences of one batch, each with its own state before it."""
    if len(those) == 1:
        return those[0]
    inputs, targets = (torch.cat([getattr(v.batch, n) for v in those], 1) for n in ("inputs", "targets"))
    scored = None
    if any(v.batch.scored is not None for v in those):
        everywhere = [
            torch.ones(v.batch.targets.shape[:2], dtype=torch.bool) if v.batch.scored is None else v.batch.scored
            for v in those
        ]
        scored = torch.cat(everywhere, 1)
    states = [v.state for v in those]
    one = isinstance(states[0], Tensor)
    state = torch.cat(states, 1) if one else tuple(torch.cat(s, 1) for s in zip(*states, strict=True))
    return Looked(Batch(inputs, targets, scored), state)


def _even_first(found: list[Looked]) -> list[Looked]:
    """With a batch of sequences of one length in front: how far back a model looks is measured on the first. Where
    there is none of enough sequences, those of the commonest length in a batch are one."""
    even = [v for v in found if v.batch.lengths is None and v.batch.inputs.shape[1] >= SIDE_BY_SIDE]
    if even:
        longest = max(even, key=lambda v: len(v.batch.inputs))
        return [longest, *(v for v in found if v is not longest)]
    common = [Counter(v.batch.lengths.tolist()).most_common(1)[0] for v in found if v.batch.lengths is not None]
    length, count = max(common, key=lambda c: (c[1] >= SIDE_BY_SIDE, c[0]), default=(0, 0))
    if count < SIDE_BY_SIDE:
        return found
    ragged = [v for v in found if v.batch.lengths is not None]
    n = common.index((length, count))
    return [_of_length(ragged[n], length), *(v for v in found if v is not ragged[n])]


def _of_length(those: Looked, length: int) -> Looked:
    """The sequences of a batch that have this length."""
    batch = those.batch
    assert batch.lengths is not None
    chosen = batch.lengths == length
    steps = slice(None if len(batch.targets) == 1 else length)  # a label each stands in one row
    scored = None if batch.scored is None else batch.scored[steps, chosen]
    state = those.state
    if state is not None:
        state = state[:, chosen] if isinstance(state, Tensor) else tuple(s[:, chosen] for s in state)
    return Looked(Batch(batch.inputs[:length, chosen], batch.targets[steps, chosen], scored), state)
