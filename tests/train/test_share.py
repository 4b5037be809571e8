"""Tests of what each of several processes reads of a batch, and of carried states taken apart and put together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from throughtime.train import TaskConfig
from throughtime.train.data.batch import Batch, Source
from throughtime.train.data.generated import prepare
from throughtime.train.data.sequences import Sequences
from throughtime.train.data.share import Share
from throughtime.train.data.streams import Streams
from throughtime.train.states import first_of, merged, share_of


def steps_of(batch: Batch) -> list[list[float]]:
    """What each sequence of a batch brings, without padding."""
    T, B = batch.inputs.shape[:2]
    lengths = [T] * B if batch.lengths is None else batch.lengths.tolist()
    return [batch.inputs[:n, b].tolist() for b, n in enumerate(lengths)]


def scored_of(batch: Batch) -> list[Any]:
    """The targets that count, sequence by sequence."""
    scored = torch.ones(batch.targets.shape[:2], dtype=torch.bool) if batch.scored is None else batch.scored
    return [batch.targets[scored[:, b], b].tolist() for b in range(batch.targets.shape[1])]


def assert_shared(source: Source, size: int, positions: int) -> None:
    """The shares of each batch are, taken together, the batch; and what is carried on is what came before."""
    shares = [Share(source, rank, size) for rank in range(size)]
    before: list[Any] = [None] * size
    for position in range(positions):
        whole = source.batch(position)
        T, B = whole.inputs.shape[:2]
        parts = [share.batch(position) for share in shares]
        assert all(part.total == whole.count and part.inputs.dtype == whole.inputs.dtype for part in parts)
        assert sum(part.count for part in parts) == whole.count == whole.total
        for rank, part in enumerate(parts):
            mine = range(rank, B, size)
            assert part.filler == (not mine)
            if not mine:
                assert part.inputs.shape[:2] == (1, 1) and not part.carried and part.count == 0
                before[rank] = None
                continue
            assert steps_of(part) == [steps_of(whole)[b] for b in mine]
            assert scored_of(part) == [scored_of(whole)[b] for b in mine]
            assert part.inputs.shape[0] <= T and part.carried == whole.carried
            if part.lengths is not None:
                assert part.lengths.tolist() == sorted(part.lengths.tolist(), reverse=True)
                assert int(part.lengths[0]) == len(part.inputs) > int(part.lengths[-1])
            # The state is the number of the sequence, which the inputs name.
            names = torch.tensor([int(part.inputs[0, b, 0]) for b in range(part.inputs.shape[1])]).view(1, -1, 1)
            if part.carried:
                assert first_of(before[rank], names.shape[1]).tolist() == names.tolist()
            before[rank] = names


def sequences(lengths: list[int], batch: int, window: int, at_end: bool) -> Sequences:
    inputs = [torch.stack([torch.full((n,), k), torch.arange(n)], 1).float() for k, n in enumerate(lengths)]
    targets = [torch.tensor([k]) if at_end else 100 * k + torch.arange(n) for k, n in enumerate(lengths)]
    return Sequences(inputs, targets, batch, window, seed=3, at_end=at_end)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    batch=st.integers(1, 6),
    window=st.integers(0, 4),
    size=st.integers(2, 4),
    at_end=st.booleans(),
)
def test_shares_of_sequences_are_the_whole(
    lengths: list[int], batch: int, window: int, size: int, at_end: bool
) -> None:
    source = sequences(lengths, batch, window, at_end)
    assert_shared(source, size, 2 * len(source))


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("scored", [False, True])
def test_shares_of_streams_are_the_whole(size: int, scored: bool) -> None:
    steps = torch.arange(43)
    names = torch.stack([steps // (43 // 4), steps], 1).float()
    source = Streams(names, steps, 4, 3, steps > 9 if scored else None, tail=True)
    assert_shared(source, size, 2 * len(source))
    assert all(len(Share(source, rank, size)) == len(source) for rank in range(size))


@pytest.mark.parametrize(("task", "window"), [("copy", 6), ("adding", 0), ("reber", 0)])
def test_shares_of_a_generated_task(task: str, window: int) -> None:
    config = TaskConfig(task, lag=5, batch=5, window=window)
    source = prepare(config, None).train
    for position in range(4):
        whole = source.batch(position)
        parts = [Share(source, rank, 3).batch(position) for rank in range(3)]
        assert [p.inputs.shape[1] for p in parts] == [2, 2, 1] and sum(p.count for p in parts) == whole.count
        for rank, part in enumerate(parts):
            assert scored_of(part) == scored_of(whole)[rank::3]
            if whole.allowed is not None:
                assert part.allowed is not None
                assert torch.equal(part.allowed, whole.allowed[: len(part.inputs), rank::3])


@settings(max_examples=40, deadline=None)
@given(width=st.integers(0, 7), size=st.integers(1, 4), again=st.integers(1, 4), two=st.booleans())
def test_states_taken_apart_are_put_together_for_any_number_of_processes(
    width: int, size: int, again: int, two: bool
) -> None:
    one = torch.arange(2.0 * width * 3).view(2, width, 3)
    state: Any = None if not width else (one, one + 100) if two else one
    for count in (size, again):
        shares = [share_of(state, rank, count) for rank in range(count)]
        assert [s is None for s in shares] == [width <= rank for rank in range(count)]
        back = merged(shares)
        if not width:
            assert back is None
        else:
            assert all(torch.equal(a, b) for a, b in zip(_tuple(back), _tuple(state), strict=True))
            assert isinstance(back, tuple) == two


def _tuple(state: Any) -> tuple[torch.Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)
