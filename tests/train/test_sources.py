"""Batches of sequences: packing, order, windows; generated tasks as a source."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from throughtime.errors import ConfigError
from throughtime.train import TaskConfig
from throughtime.train.data import Sequences, Streams, generated


def numbered(lengths: list[int]) -> list[torch.Tensor]:
    """Sequence n holds 100 n + t at step t."""
    return [100 * n + torch.arange(length) for n, length in enumerate(lengths)]


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9),
    batch=st.integers(1, 4),
    window=st.integers(0, 5),
    seed=st.sampled_from([None, 0, 3]),
    at_end=st.booleans(),
)
def test_each_pass_reads_every_step_of_every_sequence_once(
    lengths: list[int], batch: int, window: int, seed: int | None, at_end: bool
) -> None:
    inputs = numbered(lengths)
    targets = [torch.tensor([n]) for n in range(len(lengths))] if at_end else [-x for x in inputs]
    source = Sequences(inputs, targets, batch, window, seed=seed, at_end=at_end)
    for number in range(2):
        position, seen, asked, before = number * len(source) if seed is None else None, [], [], torch.empty(0)
        if position is None:  # passes may differ in their number of windows
            source._plan(0)
            position = 0 if number == 0 else len(source)
        while len(seen) < sum(lengths):
            b = source.batch(position)
            position += 1
            T, B = b.inputs.shape[:2]
            lens = b.lengths if b.lengths is not None else torch.full((B,), T)
            assert lens.tolist() == sorted(lens.tolist(), reverse=True) and int(lens[0]) == T
            real = torch.arange(T).unsqueeze(1) < lens
            seen += b.inputs[real].tolist()
            scored = b.scored if b.scored is not None else torch.ones(b.targets.shape[:2], dtype=torch.bool)
            assert b.count == int(scored.sum())
            if at_end:
                asked += b.targets[scored].tolist()
                done = [lengths[int(x) // 100] == int(x) % 100 + 1 for x in b.inputs[lens - 1, torch.arange(B)]]
                assert scored[0].tolist() == done
            else:
                assert torch.equal(scored, real)
                assert torch.equal(b.targets[scored], -b.inputs[scored])
            first = b.inputs[0]
            assert b.carried == bool(first[0] % 100)
            if b.carried:  # the first sequences of the batch before go on
                assert torch.equal(first // 100, before[:B] // 100) and window > 0
            before = first
        assert sorted(seen) == sorted(torch.cat(inputs).tolist())
        if at_end:
            assert sorted(asked) == list(range(len(lengths)))


def test_the_order_is_another_in_each_pass_and_the_same_when_asked_again() -> None:
    inputs = numbered([3] * 20)
    one, two = (Sequences(inputs, inputs, 20, seed=5) for _ in range(2))
    second, first = one.batch(1), one.batch(0)  # in any order
    assert torch.equal(two.batch(0).inputs, first.inputs) and torch.equal(two.batch(1).inputs, second.inputs)
    assert not torch.equal(first.inputs, second.inputs)
    other = Sequences(inputs, inputs, 20, seed=6).batch(0)
    assert not torch.equal(other.inputs, first.inputs)


def test_streams_of_numbers_keep_their_tail_where_asked() -> None:
    x, y = torch.randn(11, 3), torch.randn(11, 2)
    scored = torch.arange(11) >= 4
    streams = Streams(x, y, 1, 4, scored, tail=True)
    parts = [streams.batch(i) for i in range(len(streams))]
    assert [len(p.inputs) for p in parts] == [4, 4, 3] and [p.carried for p in parts] == [False, True, True]
    assert [p.count for p in parts] == [0, 4, 3] and not streams.batch(3).carried
    assert torch.equal(torch.cat([p.inputs for p in parts])[:, 0], x)
    assert torch.equal(torch.cat([p.targets for p in parts])[:, 0], y)
    assert len(Streams(x, y, 1, 4)) == 2


def test_a_task_draws_the_same_batch_for_the_same_position_only() -> None:
    data = generated.prepare(TaskConfig("adding", lag=6, batch=4), None)
    again = generated.prepare(TaskConfig("adding", lag=6, batch=4), None)
    other = generated.prepare(TaskConfig("adding", lag=6, batch=4, seed=1), None)
    first = data.train.batch(7)
    assert data.valid is not None and data.test is not None
    assert torch.equal(again.train.batch(7).inputs, first.inputs) and not first.carried
    for source, position in ((data.train, 8), (data.valid, 7), (data.test, 7), (other.train, 7)):
        assert not torch.equal(source.batch(position).inputs, first.inputs)
    assert len(data.valid) == 500 and data.references["valid"] == {
        "loss without memory": 1 / 6, "least possible loss": 0.0
    }  # fmt: skip


def test_windows_of_a_task_are_its_sequences_cut() -> None:
    config = TaskConfig("copy", lag=7, batch=3, window=5)
    cut = generated.prepare(config, None).train
    whole = generated.prepare(TaskConfig("copy", lag=7, batch=3), None).train.batch(1)
    parts = [cut.batch(i) for i in range(6, 12)]  # 27 steps are six windows
    assert torch.equal(torch.cat([p.inputs for p in parts]), whole.inputs)
    assert torch.equal(torch.cat([p.targets for p in parts]), whole.targets)
    assert [p.carried for p in parts] == [False] + 5 * [True]
    with pytest.raises(ConfigError, match="task reber differ in length; leave window at 0"):
        generated.prepare(TaskConfig("reber", window=5), None)


def test_reber_strings_come_from_long_to_short() -> None:
    b = generated.prepare(TaskConfig("reber", lag=8, batch=16), None).train.batch(0)
    assert b.lengths is not None and b.scored is not None and b.allowed is not None
    assert b.lengths.tolist() == sorted(b.lengths.tolist(), reverse=True)
    assert torch.equal(b.scored.sum(0), b.lengths)
    assert bool(b.allowed.gather(-1, b.targets.unsqueeze(-1)).squeeze(-1)[b.scored].all())
