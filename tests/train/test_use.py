"""Using trained runs: evaluate, forecast, and one step at a time."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from throughtime.errors import ConfigError, DataError
from throughtime.train import (
    ForecastConfig,
    LabelConfig,
    LMConfig,
    NotesConfig,
    Online,
    TaskConfig,
    evaluate,
    forecast,
    load,
    train,
)
from throughtime.train.data import prepare
from throughtime.train.mixture import GaussianMixture

SMALL: dict[str, Any] = {"hidden": 8, "steps": 30, "valid_every": 10, "lr": 0.02, "threads": 1}
LONGER = {**SMALL, "steps": 60, "lr": 0.05}


def series_run(place: Path, **options: Any) -> tuple[Path, np.ndarray]:
    y = 5 + np.sin(np.arange(130) * 2 * math.pi / 6) + 0.01 * np.random.default_rng(0).standard_normal(130)
    (place / "y.csv").write_text("n,y\n" + "".join(f"{i % 7},{v:.5f}\n" for i, v in enumerate(y)))
    given = {**SMALL, "target": "y", "horizon": 4, "window": 8, **options}
    config = ForecastConfig(str(place / "y.csv"), **given)
    return train(config, place / "run").path, np.array([float(f"{v:.5f}") for v in y])


def test_text_is_evaluated_in_bits_perplexity_and_accuracy(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("abcabd" * 60)
    config = LMConfig(str(tmp_path / "t.txt"), window=6, batch=2, embedding=4, test_fraction=0.2, **SMALL)
    result = train(config, tmp_path / "run")
    found = evaluate(tmp_path / "run", part="valid")
    bits = found.measures["bits per character"]
    assert bits == pytest.approx(result.best_valid) and next(iter(found.measures)) == "bits per character"
    assert found.measures["perplexity"] == pytest.approx(2**bits) and 0 < found.measures["accuracy"] <= 1
    assert found.checkpoint == f"step-{result.best_step:06d}" and found.on == "valid"
    assert evaluate(tmp_path / "run").on == "test"
    other = evaluate(tmp_path / "run", data=tmp_path / "t.txt")
    assert other.measures["bits per character"] != bits and json.loads(json.dumps(other.plain()))
    (tmp_path / "u.txt").write_text("abcz" * 60)
    with pytest.raises(DataError, match="vocabulary of this run does not have"):
        evaluate(tmp_path / "run", data=tmp_path / "u.txt")
    with pytest.raises(ConfigError, match="part must be valid or test"):
        evaluate(tmp_path / "run", part="train")


def test_a_forecast_is_measured_in_the_targets_unit(tmp_path: Path) -> None:
    run, y = series_run(tmp_path)
    model, found = load(run), evaluate(run)
    config = model.config
    data = prepare(config)
    split = 130 - round(130 * config.valid_fraction)
    scores, errors, covered, nats = [], [], [], []
    for origin in range(split - 1, 130 - 4):  # every origin alone, from the start of the series
        with torch.no_grad():
            inputs = data.schema.inputs(torch.tensor(_rows(tmp_path)[: origin + 1]))  # type: ignore[attr-defined]
            outputs = model(inputs.unsqueeze(1))[0][-1, 0]
        offset, factor = (torch.tensor(v).double() for v in (model.schema.offset, model.schema.factor))
        density = model.schema.head.distribution(outputs).to(torch.float64).moved(offset, factor)
        want = torch.tensor(y[origin + 1 : origin + 5])
        scores += density.crps(want).tolist()
        errors += (want - density.quantile(0.5)).abs().tolist()
        nats += (-density.log_prob(want)).tolist()
        covered += ((density.quantile(0.1) <= want) & (want <= density.quantile(0.9))).tolist()
    assert found.measures["nats per value"] == pytest.approx(np.mean(nats), rel=1e-3)
    assert found.measures["crps"] == pytest.approx(np.mean(scores), rel=1e-3)
    assert found.measures["mae of the median"] == pytest.approx(np.mean(errors), rel=1e-3)
    assert found.measures["coverage of the middle 80%"] == pytest.approx(np.mean(covered), abs=0.03)
    assert found.references.keys() == {"mae of the last value"} and "to compare with" in str(found)


def _rows(place: Path) -> list[list[float]]:
    lines = (place / "y.csv").read_text().splitlines()[1:]
    return [[float(v) for v in line.split(",")] for line in lines]


@pytest.mark.parametrize("season", [0, 6])
def test_a_forecast_goes_on_behind_the_last_row_and_online_says_the_same(tmp_path: Path, season: int) -> None:
    run, y = series_run(tmp_path, season=season, components=2)
    found = forecast(run, quantiles=(0.1, 0.9))
    assert found.rows == 130 and len(found.mean) == 4 and list(found.quantiles) == [0.1, 0.9]
    assert all(low < mean < high for low, mean, high in zip(*_three(found), strict=True))
    lines = found.csv().splitlines()
    assert lines[0] == "ahead,mean,q0.1,q0.9" and len(lines) == 5
    online, said = Online(load(run)), None
    for number, row in enumerate(_rows(tmp_path)):
        said = online.step(row)
        assert (said is None) == (number < season)
    assert isinstance(said, GaussianMixture)
    torch.testing.assert_close(said.expectation(), torch.tensor(found.mean).double(), rtol=1e-4, atol=1e-5)
    first = online.state
    online.reset()
    assert online.state is None and first is not None
    if season:  # without any signal left but the season, the season is foreseen
        assert found.mean == pytest.approx(y[130 - 6 : 130 - 2].tolist(), abs=0.2)


def _three(found: Any) -> tuple[list[float], list[float], list[float]]:
    return found.quantiles[0.1], found.mean, found.quantiles[0.9]


def test_a_forecast_of_another_table(tmp_path: Path) -> None:
    run, _ = series_run(tmp_path)
    (tmp_path / "o.csv").write_text("y,n,more\n5,1,x\n6,2,y\n")
    assert forecast(run, data=tmp_path / "o.csv").rows == 2
    assert evaluate(run, data=tmp_path / "y.csv").measures["crps"] > 0
    (tmp_path / "p.csv").write_text("y\n5\n")
    with pytest.raises(DataError, match="has no column 'n'"):
        forecast(run, data=tmp_path / "p.csv")
    with pytest.raises(ConfigError, match="a quantile is between 0 and 1"):
        forecast(run, quantiles=(1.5,))
    with pytest.raises(DataError, match="is too short: 2 rows"):
        evaluate(run, data=tmp_path / "o.csv")


def test_labels_are_evaluated_and_said_step_by_step(tmp_path: Path) -> None:
    words = [("ababa" if n % 2 else "babab")[: 1 + n % 5] for n in range(30)]
    (tmp_path / "w.csv").write_text("w,k\n" + "".join(f"{w},{w[0]}\n" for w in words))
    config = LabelConfig(str(tmp_path / "w.csv"), label="k", characters="w", batch=5, valid_fraction=0.3, **LONGER)
    train(config, tmp_path / "run")
    found = evaluate(tmp_path / "run")
    assert found.measures.keys() == {"nats per sequence", "accuracy"}
    whole = evaluate(tmp_path / "run", data=tmp_path / "w.csv")
    assert whole.measures["accuracy"] >= 0.9 and found.references.keys() == {"accuracy of the commonest label"}
    online = Online(load(tmp_path / "run"))
    said = [online.step(symbol) for symbol in "aba"]
    assert [s.shape for s in said] == [(2,)] * 3 and float(said[-1].sum()) == pytest.approx(1)
    assert int(said[-1].argmax()) == 0
    for wrong in ("ab", 7, 0.5):
        with pytest.raises(DataError, match="a step is one symbol, or a number from 0 to 1"):
            online.step(wrong)
    (tmp_path / "v.csv").write_text("w,k\nab,c\n")
    with pytest.raises(DataError, match="has the label 'c'"):
        evaluate(tmp_path / "run", data=tmp_path / "v.csv")
    both = LabelConfig(**{**vars(config), "bidirectional": True, "steps": 2})
    with pytest.raises(ConfigError, match="cannot be fed step by step"):
        Online(load(train(both, tmp_path / "both").path))


def test_notes_are_evaluated_and_said_step_by_step(tmp_path: Path) -> None:
    rolls = np.tile(np.eye(8, dtype=np.uint8), (10, 1))
    np.savez(tmp_path / "r.npz", train=rolls, train_len=[16] * 5, test=rolls[:16], test_len=[16])
    config = NotesConfig(str(tmp_path / "r.npz"), batch=4, valid_fraction=0.2, **{**SMALL, "lr": 0.1})
    train(config, tmp_path / "run")
    found = evaluate(tmp_path / "run")
    assert found.on == "test" and found.measures["accuracy"] > 0.9
    assert evaluate(tmp_path / "run", data=tmp_path / "r.npz").measures == found.measures
    online = Online(load(tmp_path / "run"))
    for step in rolls[:12]:
        p = online.step(step)
    assert p.shape == (8,) and int(p.argmax()) == 12 % 8
    with pytest.raises(DataError, match="a step is 8 finite numbers"):
        online.step([1, 2])


@pytest.mark.parametrize("window", [0, 5])
def test_tasks_are_evaluated_beside_the_loss_without_memory(tmp_path: Path, window: int) -> None:
    train(TaskConfig("recall", lag=8, window=window, batch=50, **{**SMALL, "steps": 40}), tmp_path / "run")
    found = evaluate(tmp_path / "run", part="valid")
    assert found.references == {"loss without memory": math.log(2), "least possible loss": 0.0}
    right = found.measures["sequences right"]
    assert 0.4 < right <= 1 and (right == 1 or found.measures["nats per scored step"] > 0.01)
    with pytest.raises(DataError, match="has no files"):
        evaluate(tmp_path / "run", data="x")
    with pytest.raises(ConfigError, match="train one that forecasts"):
        forecast(tmp_path / "run")


def test_a_run_without_held_out_data_cannot_be_evaluated_on_them(tmp_path: Path) -> None:
    run, _ = series_run(tmp_path, valid_fraction=0.0)
    with pytest.raises(ConfigError, match="kept no part of its data for valid; name other data"):
        evaluate(run)
