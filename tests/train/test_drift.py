"""Drift: a model that reads its own output, beside itself on real data."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from throughtime import cli
from throughtime.errors import ConfigError, DataError
from throughtime.train import Drift, ForecastConfig, LMConfig, NotesConfig, TaskConfig, drift, load, train
from throughtime.train import feedback as loops
from throughtime.train.data import prepare
from throughtime.train.data.schema import TextSchema
from throughtime.train.data.streams import Streams
from throughtime.train.data.vocabulary import Vocabulary

SMALL: dict[str, Any] = {"hidden": 8, "steps": 30, "valid_every": 10, "lr": 0.02, "threads": 1, "watch_budget": 0.0}


def text_run(place: Path, **options: Any) -> Path:
    words = random.Random(0).choices(["the cat ", "sat on ", "a mat.\n"], k=300)
    (place / "t.txt").write_text("".join(words))
    config = LMConfig(str(place / "t.txt"), window=8, batch=4, embedding=6, valid_fraction=0.4, **{**SMALL, **options})
    return train(config, place / "run").path


def test_a_hardly_trained_text_model_writes_other_text_than_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = text_run(tmp_path)
    assert cli.main(["drift", str(run), "--length", "20", "--context", "10", "--sequences", "16"]) == 0
    shown = capsys.readouterr().out
    found = drift(run, length=20, context=10, sequences=16)
    assert shown.splitlines()[:-1] == str(found).splitlines() and shown.splitlines()[-1] == str(run / "drift.json")
    again = Drift.from_dict(json.loads((run / "drift.json").read_text()))
    assert str(again) == str(found) and found.sequences == 16
    assert (found.first, found.last) == ((1, 2, 3, 5, 9, 17), (1, 2, 4, 8, 16, 20))
    assert list(found.of) == ["entropy", "pairs", "state"]
    first = found.of["entropy"]
    assert (
        float(first.difference[0]) == 0 and float(first.error[0]) == 0
    )  # the first draw is from the same distribution
    pairs = found.of["pairs"]
    assert float(pairs.difference[-1]) > 3 * float(pairs.error[-1]) and "pairs" in found.drifted
    state = found.of["state"]
    real = (state.open * torch.tensor([1, 1, 2, 4, 8, 4])).sum() / 20
    assert float(real) == pytest.approx(1)


def test_the_numbers_are_what_they_say(tmp_path: Path) -> None:
    run = text_run(tmp_path)
    model = load(run)
    found = drift(run, length=3, context=4, sequences=5, seed=7)
    data = prepare(model.config, model.schema)
    text = data.valid.inputs.flatten()  # type: ignore[union-attr]
    begins = 8 * torch.linspace(0, len(text) // 8 - 1, 5).long()
    real = torch.stack([text[b : b + 8] for b in begins.tolist()], 1).long()
    with torch.no_grad():
        log_p = model(real)[0].double().log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1) / math.log(2)
    torch.testing.assert_close(found.of["entropy"].open[:2], entropy[3:5].mean(1))
    with torch.no_grad():  # the same draws by hand
        generator, (outputs, state) = torch.Generator().manual_seed(7), model(real[:4])
        for n in range(3):
            log_p = outputs[-1].double().log_softmax(-1)
            entropy = -(log_p.exp() * log_p).sum(-1) / math.log(2)
            assert float(found.of["entropy"].closed[n]) == pytest.approx(float(entropy.mean()))
            step = torch.multinomial(log_p.exp(), 1, generator=generator).squeeze(-1)
            outputs, state = model(step.unsqueeze(0), state)


def test_pairs_are_judged_by_the_training_text() -> None:
    schema = TextSchema(Vocabulary("characters", "ab"))
    text = torch.tensor([0, 1] * 500)
    part = Streams(text, text, 1, 8)
    loop = loops.TextLoop(schema, part, part, 10, 8)
    told = loop.tell(torch.zeros(2, 2), torch.tensor([0, 0]), torch.tensor([1, 0]))
    assert told["entropy"].tolist() == [1, 1]
    q = [(500 + 5) / 510, 5 / 510]
    assert told["pairs"].tolist() == pytest.approx([-math.log2(v) for v in q])


def test_notes(tmp_path: Path) -> None:
    rolls = np.tile(np.eye(6, dtype=np.uint8), (40, 1))
    np.savez(tmp_path / "r.npz", train=rolls, train_len=[24] * 10)
    config = NotesConfig(str(tmp_path / "r.npz"), batch=4, valid_fraction=0.5, **SMALL)
    run = train(config, tmp_path / "run").path
    found = drift(run, length=8, context=4)
    assert found.sequences == 5 and found.of["notes"].open.tolist() == [1.0] * 4
    with pytest.raises(DataError, match="has 0 stretches of 41 steps"):
        drift(run, length=36, context=4)


def test_a_series_forecast_from_itself(tmp_path: Path) -> None:
    y = 5 + np.sin(np.arange(400) * 2 * math.pi / 6) + 0.1 * np.random.default_rng(0).standard_normal(400)
    (tmp_path / "y.csv").write_text("n,y\n" + "".join(f"{i % 7},{v:.5f}\n" for i, v in enumerate(y)))
    options = {**SMALL, "steps": 60, "lr": 0.05, "valid_fraction": 0.4, "window": 8}
    config = ForecastConfig(str(tmp_path / "y.csv"), target="y", inputs="y", components=2, horizon=2, **options)
    run = train(config, tmp_path / "run").path
    found = drift(run, length=8, context=12)
    assert list(found.of) == ["spread", "value", "square", "state"]
    assert abs(float(found.of["square"].difference[-1])) < 1 and float(found.of["spread"].open[0]) > 0
    for n, (extra, word) in enumerate([({"inputs": ""}, "cannot be closed"), ({"season": 6}, "--season")]):
        other = ForecastConfig(**{**vars(config), "steps": 1, **extra})
        with pytest.raises(ConfigError, match=word):
            drift(train(other, tmp_path / f"other-{n}").path, length=8, context=12)


def test_what_makes_no_sense(tmp_path: Path) -> None:
    run = text_run(tmp_path, steps=1)
    for options, word in (
        ({"length": 0}, "length must be at least 1"),
        ({"seed": -1}, "seed must be"),
        ({"part": "train"}, "part must be valid or test"),
        ({"part": "test"}, "kept no part of its data for test"),
    ):
        with pytest.raises(ConfigError, match=word):
            drift(run, **options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="lower --length or --context"):
        drift(run, length=5000)
    task = train(TaskConfig("recall", lag=4, batch=5, **{**SMALL, "steps": 1}), tmp_path / "task").path
    with pytest.raises(ConfigError, match="no loop to close"):
        drift(task)
