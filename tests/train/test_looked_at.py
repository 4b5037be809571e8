"""What a diagnosis reads of a run: batches with their states, the loss that the run is trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.train.runs import KINDS, described

from throughtime.diagnosis.sequences import Unseen
from throughtime.train.asking import asked_of
from throughtime.train.data.prepare import prepare
from throughtime.train.data.prepared import Prepared
from throughtime.train.data.scaling import Scaling
from throughtime.train.data.schema import ForecastSchema, LabelSchema
from throughtime.train.data.sequences import Sequences
from throughtime.train.data.streams import Streams
from throughtime.train.gradient import run_flow
from throughtime.train.kinds import ForecastConfig, LabelConfig
from throughtime.train.looked_at import look, mean_loss
from throughtime.train.measures import run_batch, total_loss
from throughtime.train.model import SequenceModel, build


def of(kind: str, place: Path) -> tuple[Prepared, SequenceModel]:
    config = described(kind, place)
    data = prepare(config)
    torch.manual_seed(0)
    model = build(config, data.schema)
    model.eval()
    return data, model


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_mean_of_that_of_training(kind: str, tmp_path: Path) -> None:
    data, model = of(kind, tmp_path)
    assert data.valid is not None
    seen = look(model, data.valid, 3)
    assert seen
    for one in seen:
        args, targets = one.pair(data.schema)
        batch = one.batch
        outputs = model(*args)
        wanted = total_loss(data.schema, outputs[0], batch) / batch.count
        torch.testing.assert_close(mean_loss(data.schema)(outputs, targets), wanted)


def test_states_are_those_of_training(tmp_path: Path) -> None:
    data, model = of("forecast", tmp_path)
    train = data.train
    seen = look(model, train, 2)
    state = None
    with torch.no_grad():
        for n in range(5):
            batch = train.batch(n)
            before = state
            _, state = run_batch(model, batch, state)
            if n:  # two streams: four windows side by side
                side = slice(2 * (n - 1), 2 * n)
                assert torch.equal(seen[0].batch.inputs[:, side], batch.inputs)
                assert before is not None
                torch.testing.assert_close(seen[0].state[0][:, side], before[0])
                torch.testing.assert_close(seen[0].state[1][:, side], before[1])


def test_the_first_batch_has_sequences_of_one_length(tmp_path: Path) -> None:
    model = of("label", tmp_path)[1]
    texts = [torch.randint(0, 3, (n,)) for n in [4] * 9 + [5, 6, 7]]
    source = Sequences(texts, [torch.zeros(1, dtype=torch.long)] * 12, 12, at_end=True)
    [first] = look(model, source, 3)
    assert first.batch.lengths is None and list(first.batch.inputs.shape) == [4, 9]
    assert list(first.batch.targets.shape) == [1, 9]
    few = Sequences(texts[5:], [torch.zeros(1, dtype=torch.long)] * 7, 12, at_end=True)
    assert look(model, few, 3)[0].batch.lengths is not None  # four of one length are too few to compare


def test_targets_that_do_not_count_are_left_out() -> None:
    streams = Streams(torch.zeros(12, 1), torch.zeros(12, 1), 1, 4, torch.arange(12) >= 6)
    assert [streams.batch(n).count for n in range(3)] == [0, 2, 4]
    schema = ForecastSchema(Scaling(("s",), (0.0,), (1.0,)), "s", 0, 1, (0.0,), (1.0,))
    model = build(ForecastConfig("s.csv", target="s", hidden=3), schema)
    [only] = look(model, streams, 4)
    assert bool(only.batch.scored is None or only.batch.scored.all())  # the window that brings the state is left out


@pytest.mark.parametrize("kind", KINDS)
def test_the_flow_of_every_kind(kind: str, tmp_path: Path) -> None:
    data, model = of(kind, tmp_path)
    assert data.valid is not None
    flow = run_flow(model, data.valid)
    assert flow.maps["z"].any() and not flow.reverse and not flow.maps["z"].triu(1).any()
    assert all(p.grad is None for p in model.parameters())
    if data.schema.at_end:  # a loss enters at the end of each sequence
        batches = [v.batch for v in look(model, data.valid, 2)]
        T = max(len(b.inputs) for b in batches)
        ends = {
            n - 1 for b in batches if len(b.inputs) == T for n in ([T] if b.lengths is None else b.lengths.tolist())
        }
        assert set(flow.maps["h"].sum(1).nonzero()[:, 0].tolist()) == ends


def test_a_copied_symbol_is_what_is_asked_for() -> None:
    """y_t = x_{t-3}: the data horizon is 3, and the data are those that were given."""
    torch.manual_seed(0)
    xs = [torch.nn.functional.one_hot(torch.randint(0, 4, (12,)), 4).float() for _ in range(200)]
    ys = [x.argmax(-1).roll(3) for x in xs]
    scored = [torch.arange(12) >= 3 for _ in xs]
    data = Prepared(LabelSchema(None, None, ("a", "b"), False), Sequences(xs, ys, 8, scored=scored), None, None, "")
    config = LabelConfig("t.csv", label="k", per="step", sequence="q")
    assert asked_of(data, config).pairs.horizon().steps == 3


def test_too_few_data_are_said_to_be_too_few() -> None:
    source = Sequences([torch.zeros(1, 2)] * 30, [torch.zeros(1, dtype=torch.long)] * 30, 8, at_end=True)
    data = Prepared(LabelSchema(None, None, ("a", "b"), True), source, None, None, "")
    with pytest.raises(Unseen, match="one step"):
        asked_of(data, LabelConfig("t.csv", label="k", sequence="q"))
