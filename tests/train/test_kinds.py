"""Training on every kind of data: it learns, it resumes exactly; accumulation, schedules, patience, bfloat16."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from throughtime.errors import CheckpointError, ConfigError, DataError
from throughtime.train import (
    ForecastConfig,
    LabelConfig,
    LMConfig,
    NotesConfig,
    RunConfig,
    TaskConfig,
    TrainResult,
    load,
    resume,
    train,
)
from throughtime.train.data import prepare
from throughtime.train.kinds import KINDS, from_plain, to_plain
from throughtime.train.measures import run_batch, total_loss, validate
from throughtime.train.session import Session, private_torch
from throughtime.train.updates import gradients, learning_rate

Make = Callable[..., RunConfig]
SMALL = {"hidden": 8, "steps": 24, "valid_every": 8, "checkpoint_every": 8, "lr": 0.02, "threads": 1, "dropout": 0.2}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A small run of each kind on data made here."""
    generator = np.random.default_rng(0)
    t = np.arange(120)
    waves = "".join(f"{a:.4f},{b:.4f}\n" for a, b in zip(np.sin(t / 3), np.cos(t / 3), strict=True))
    (tmp_path / "waves.csv").write_text("s,c\n" + waves)
    words = [("ab" * n if n % 2 else "ba" * n)[: n + 1] for n in range(1, 25)]
    (tmp_path / "words.csv").write_text("w,k\n" + "".join(f"{w},{w[0]}\n" for w in words))
    steps = [(n, generator.random(), n % 2) for n in range(16) for _ in range(2 + n % 5)]
    (tmp_path / "steps.csv").write_text("who,x,k\n" + "".join(f"{n},{x + k:.3f},k{k}\n" for n, x, k in steps))
    lengths = [3 + n % 5 for n in range(12)]
    rolls = np.tile(np.eye(8, dtype=np.uint8), (9, 1))[: sum(lengths)]
    np.savez(tmp_path / "rolls.npz", train=rolls, train_len=lengths)

    def config(kind: str, **options: Any) -> RunConfig:
        given: dict[str, dict[str, Any]] = {
            "forecast": {"table": "waves.csv", "target": "s", "horizon": 3, "components": 2, "window": 7, "layers": 2},
            "season": {"table": "waves.csv", "target": "s", "horizon": 3, "season": 5, "window": 7, "cell": "gru"},
            "characters": {"table": "words.csv", "label": "k", "characters": "w", "bidirectional": True, "batch": 5},
            "sequence": {"table": "steps.csv", "label": "k", "sequence": "who", "window": 3, "batch": 4},
            "step": {"table": "steps.csv", "label": "k", "sequence": "who", "per": "step", "batch": 4, "skip": True},
            "series": {"table": "steps.csv", "label": "k", "per": "step", "inputs": "x", "window": 5, "batch": 2},
            "notes": {"archive": "rolls.npz", "batch": 3, "window": 2, "valid_fraction": 0.2},
            "adding": {"task": "adding", "lag": 6, "batch": 8, "cell": "rnn"},
            "reber": {"task": "reber", "lag": 8, "batch": 4, "embedding": 5, "valid_windows": 3},
            "copy": {"task": "copy", "lag": 3, "batch": 4, "window": 6},
        }
        kinds = {"season": ForecastConfig, "forecast": ForecastConfig, "notes": NotesConfig}
        labels = ("characters", "sequence", "step", "series")
        cls = kinds.get(kind, LabelConfig if kind in labels else TaskConfig)
        chosen = {**SMALL, **given[kind], **options}
        if cls.source in ("table", "archive"):
            chosen[cls.source] = str(tmp_path / chosen[cls.source])
        return cls(**chosen)

    return config


ALL = ["forecast", "season", "characters", "sequence", "step", "series", "notes", "adding", "reber", "copy"]


def numbers(result: TrainResult) -> list[Any]:
    return [replace(r, seconds=0.0) for r in result.history]


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "checkpoints" / f"step-{step:06d}" / "model.safetensors")


@pytest.mark.filterwarnings("ignore:dropout")
@pytest.mark.parametrize("kind", ALL)
def test_every_kind_learns_and_a_continued_run_is_the_uninterrupted_one(make: Make, tmp_path: Path, kind: str) -> None:
    config = make(kind)
    whole = train(config, tmp_path / "whole")
    assert len(whole.history) == 24 and whole.best_valid is not None
    assert min(r.valid for r in whole.history if r.valid is not None) == whole.best_valid

    class Stop(Exception):
        pass

    def crash(record: Any) -> None:
        if record.step == 13:
            raise Stop

    with pytest.raises(Stop):
        train(config, tmp_path / "parts", on_step=crash)
    parts = resume(tmp_path / "parts")
    assert numbers(parts) == numbers(whole) and parts.unit == whole.unit
    one, other = weights(tmp_path / "whole", 24), weights(tmp_path / "parts", 24)
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    data = prepare(config)
    assert data.valid is not None
    last = load(tmp_path / "whole", "last")
    assert validate(last, data.valid, config.valid_windows) == whole.history[-1].valid
    # A checkpoint does not stand in for the weights of another step.
    assert validate(load(tmp_path / "whole", "best"), data.valid, config.valid_windows) == whole.best_valid


def test_what_was_learned_is_there(make: Make, tmp_path: Path) -> None:
    """The waves are foreseen, the words' first letters remembered, the notes' order known."""
    for kind, at_most in (("forecast", -0.8), ("characters", 0.2), ("notes", 1.2)):
        config = make(kind, steps=60, lr=0.05, dropout=0.0, valid_every=30, hidden=16, layers=1)
        result = train(config, tmp_path / kind)
        assert result.best_valid is not None and result.best_valid < at_most, kind
        assert result.history[0].loss > at_most + 0.4


@pytest.mark.parametrize("kind", ["forecast", "step", "sequence", "copy"])
def test_the_recorded_loss_is_that_of_the_initial_weights(make: Make, tmp_path: Path, kind: str) -> None:
    config = make(kind, steps=1, dropout=0.0)
    record = train(config, tmp_path / "run").history[0]
    data = prepare(config)
    with private_torch(config):
        model = Session(config, data.schema).model
    position, state = 0, None
    while True:
        batch = data.train.batch(position)
        outputs, state = run_batch(model, batch, state)
        if batch.count:
            break
        position += 1
    want = data.schema.measured(float(total_loss(data.schema, outputs, batch).detach()) / batch.count)
    assert record.loss == pytest.approx(want, rel=1e-5)


def test_accumulated_windows_give_the_gradient_of_the_mean_over_all_their_targets(make: Make) -> None:
    config = make("step", accumulate=3, dropout=0.0, batch=5, seed=1)
    data = prepare(config)
    with private_torch(config):
        session = Session(config, data.schema)
    update = gradients(session, data.train)
    found = {name: p.grad.clone() for name, p in session.model.named_parameters() if p.grad is not None}
    batches = [data.train.batch(i) for i in range(3)]
    assert session.position == 3 and len({b.count for b in batches}) > 1
    session.model.zero_grad()
    total = sum(total_loss(data.schema, run_batch(session.model, b, None)[0], b) for b in batches)
    loss = total / sum(b.count for b in batches)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    assert update.loss == pytest.approx(float(loss.detach()), rel=1e-6)
    for name, p in session.model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-5, atol=1e-7)


def test_windows_without_a_target_only_carry_the_state(make: Make) -> None:
    config = make("copy", dropout=0.0, window=5, lag=8, task="recall", batch=3)  # 9 steps, the last one is asked
    data = prepare(config)
    with private_torch(config):
        session = Session(config, data.schema)
    gradients(session, data.train)
    assert session.position == 2
    whole = prepare(replace(config, window=0)).train.batch(0)
    outputs, _ = session.model(whole.inputs)
    targets = whole.targets[-1]
    want = torch.nn.functional.cross_entropy(outputs[-1], targets)
    assert gradients(session, data.train).loss != pytest.approx(float(want.detach()))  # another batch
    session.position = 0
    assert gradients(session, data.train).loss == pytest.approx(float(want.detach()), rel=1e-5)


def test_the_states_of_sequences_that_go_on_are_theirs(make: Make) -> None:
    """Cut into windows, every sequence gives the outputs that it gives alone."""
    config = make("step", dropout=0.0, window=2, batch=6)
    data = prepare(config)
    with private_torch(config):
        model = Session(config, data.schema).model.eval()
    source, state, cut = data.train, None, {}
    for position in range(len(source)):
        batch = source.batch(position)
        outputs, state = run_batch(model, batch, state)
        lengths = batch.lengths if batch.lengths is not None else torch.full((batch.inputs.shape[1],), len(outputs))
        for b, n in enumerate(lengths.tolist()):
            for t in range(n):
                cut[round(float(batch.inputs[t, b, 0]), 5), position, b] = outputs[t, b]
    alone = [(x, model(x.unsqueeze(1))[0][:, 0]) for x in source.inputs]  # type: ignore[attr-defined]
    for x, outputs in alone:
        for value, out in zip(x[:, 0].tolist(), outputs, strict=True):
            same = [o for (v, _, _), o in cut.items() if v == round(value, 5)]
            assert any(torch.allclose(o, out, atol=1e-5) for o in same)


def test_both_ends_of_a_sequence_are_read(make: Make) -> None:
    data = prepare(make("characters"))
    config = make("characters", dropout=0.0)
    with private_torch(config):
        model = Session(config, data.schema).model.eval()
    batch = data.train.batch(0)
    outputs, _ = run_batch(model, batch, None)
    assert batch.lengths is not None and outputs.shape == (1, 5, 2)
    for b, n in enumerate(batch.lengths.tolist()):
        one = batch.inputs[:n, b : b + 1]
        torch.testing.assert_close(model(one)[0][:, 0], outputs[:, b])
        for t in (0, n - 1):  # what the first and the last symbol are changes the answer
            other = one.clone()
            other[t] = (other[t] + 1) % 2
            assert not torch.allclose(model(other)[0][:, 0], outputs[:, b], atol=1e-6)


def test_schedules() -> None:
    config = LMConfig("x", lr=0.1, steps=110, warmup=10)
    assert [learning_rate(config, s) for s in (0, 4, 9, 10, 109)] == pytest.approx([0.01, 0.05, 0.1, 0.1, 0.1])
    linear, cosine = replace(config, schedule="linear"), replace(config, schedule="cosine")
    assert [learning_rate(linear, s) for s in (4, 10, 60, 109)] == pytest.approx([0.05, 0.1, 0.05, 0.001])
    assert [learning_rate(cosine, s) for s in (10, 60, 85)] == pytest.approx(
        [0.1, 0.05, 0.05 * (1 + math.cos(0.75 * math.pi))]
    )


def test_the_schedule_takes_hold_and_goes_on_after_a_pause(make: Make, tmp_path: Path) -> None:
    options: dict[str, Any] = {"schedule": "linear", "warmup": 3, "optimiser": "sgd", "dropout": 0.0, "clip_norm": 0.0}
    config = make("adding", **options)
    whole = train(config, tmp_path / "whole")
    train(replace(config, steps=8), tmp_path / "parts")  # another end: another slope, from the fifth step on
    assert whole.history[7].loss != resume(tmp_path / "parts", steps=24).history[7].loss
    first = train(make("adding", **{**options, "steps": 1}), tmp_path / "first")
    before = weights(first.path, 0)
    norm = sum(float((v - before[k]).double().square().sum()) for k, v in weights(first.path, 1).items()) ** 0.5
    assert norm == pytest.approx(config.lr / 3 * first.history[0].grad_norm, rel=1e-3)


def test_patience_ends_a_run_that_gets_no_better(make: Make, tmp_path: Path) -> None:
    config = make("adding", lr=1e-30, patience=2, valid_every=2, steps=50)
    result = train(config, tmp_path / "run")
    assert [r.step for r in result.history if r.valid is not None] == [2, 4, 6] and result.best_step == 2
    assert result.history[-1].step == 6
    assert (tmp_path / "run" / "checkpoints" / "step-000006").is_dir()
    assert resume(tmp_path / "run").history[-1].step == 8  # one more validation, no better either
    assert resume(tmp_path / "run", patience=0, steps=12).history[-1].step == 12


def test_bfloat16_computes_in_it_and_keeps_weights_in_float32(make: Make, tmp_path: Path) -> None:
    full = train(make("notes", dropout=0.0), tmp_path / "full")
    half = train(make("notes", dropout=0.0, precision="bf16"), tmp_path / "half")
    assert half.history[0].loss != full.history[0].loss
    assert half.history[0].loss == pytest.approx(full.history[0].loss, rel=0.01)
    assert {v.dtype for v in weights(half.path, 24).values()} == {torch.float32}


@pytest.mark.parametrize("kind", [*ALL, "text"])
def test_a_description_comes_back_from_json(make: Make, kind: str) -> None:
    config = LMConfig("t", symbols="words") if kind == "text" else make(kind)
    assert from_plain(to_plain(config)) == config
    assert to_plain(config)["kind"] == config.kind in KINDS


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "there is no kind None"),
        ({"kind": ["text"]}, "there is no kind"),
        ({"kind": "text", "config": 3}, "it has no options"),
        ({"kind": "text", "config": {"text": "x", "lag": 3}}, "unknown options lag"),
        ({"kind": "task", "config": {"lag": 3}}, "options are missing"),
        ({"kind": "task", "config": {"task": "copy", "lag": 0}}, "lag must be at least 1"),
        ({"kind": "label", "config": {"table": "x", "label": "y"}}, "needs to know the sequences"),
    ],
)
def test_a_description_that_is_none_says_why(content: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_plain(content)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"characters": "a", "sequence": "b"}, "it goes with neither"),
        ({"characters": "a", "embedding": 0}, "embedding must be at least 1"),
        ({"per": "step"}, "give --window"),
        ({"sequence": "b", "bidirectional": True, "window": 3}, "leave window at 0"),
        ({"sequence": "b", "patience": 3, "valid_fraction": 0.0}, "patience counts validations"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LabelConfig("t", label="y", **options)
    assert says in str(caught.value)


def test_a_run_knows_its_data_and_its_schema(make: Make, tmp_path: Path) -> None:
    config = make("characters")
    train(replace(config, steps=8), tmp_path / "run")
    schema = tmp_path / "run" / "schema.json"
    good = schema.read_text()
    schema.write_text(good.replace('"characters": "ab"', '"characters": 3'))
    with pytest.raises(CheckpointError, match=r"schema.json is damaged"):
        load(tmp_path / "run")
    schema.write_text(good)
    table = Path(asdict(config)["table"])
    table.write_text(table.read_text() + "aab,b\n")
    with pytest.raises(DataError, match="has changed since the run"):
        resume(tmp_path / "run", steps=9)
    with pytest.raises(ConfigError, match="task cannot change"):
        make("copy").changed(task="adding")
