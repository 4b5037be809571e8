"""Several series in one table: nothing crosses from one to the next; each is split, forecast, measured by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from throughtime import cli
from throughtime.errors import DataError
from throughtime.train import ForecastConfig, PanelForecast, drift, evaluate, forecast, resume, train
from throughtime.train.data import prepare
from throughtime.train.data.schema import ForecastSchema

SMALL: dict[str, Any] = {"hidden": 6, "steps": 6, "valid_every": 3, "lr": 0.02, "threads": 1, "watch_budget": 0.0}
LENGTHS = {"b": 40, "a": 60, "c d": 50}


def values(name: str) -> torch.Tensor:
    """Of each series: its name in the hundreds, the step behind it."""
    return torch.arange(LENGTHS[name]).double() / 100 + 100 * list(LENGTHS).index(name)


def table(place: Path, names: tuple[str, ...] = tuple(LENGTHS), file: str = "t.csv") -> str:
    """The rows of the series one by one in turn, so that none stands together."""
    lines = [
        f"{n},{name},{float(values(name)[n]):.2f},{n % 5}" for n in range(60) for name in names if n < LENGTHS[name]
    ]
    (place / file).write_text("id,shop,y,x\n" + "\n".join(lines) + "\n")
    return str(place / file)


def config(place: Path, **options: Any) -> ForecastConfig:
    given = {"target": "y", "series": "shop", "inputs": "y,x", "horizon": 2, "window": 8, "batch": 2, **SMALL}
    return ForecastConfig(table(place), **{**given, **options})


@pytest.mark.parametrize("season", [0, 4])
def test_windows_stay_in_their_series_and_the_split_is_each_ones_own(tmp_path: Path, season: int) -> None:
    options = config(tmp_path, valid_fraction=0.2, test_fraction=0.1, season=season)
    data = prepare(options)
    schema = data.schema
    assert isinstance(schema, ForecastSchema) and schema.inputs.columns == ("y", "x")
    splits = {name: n - round(0.1 * n) - round(0.2 * n) for name, n in LENGTHS.items()}
    if not season:
        known = torch.cat([values(name)[: splits[name]] for name in LENGTHS])
        assert schema.inputs.mean[0] == pytest.approx(float(known.mean()))
        assert schema.inputs.deviation[0] == pytest.approx(float(known.std(unbiased=False)))
    offset, factor = torch.tensor(schema.offset).double(), torch.tensor(schema.factor).double()
    for part, source in {"train": data.train, "valid": data.valid, "test": data.test}.items():
        assert source is not None
        seen: list[float] = []
        for i in range(len(source)):
            batch = source.batch(i)
            scored = torch.ones(batch.targets.shape[:2]).bool() if batch.scored is None else batch.scored
            y = batch.inputs[..., 0].double() * schema.inputs.deviation[0] + schema.inputs.mean[0]
            ahead = batch.targets.double() * factor + offset
            if not season:  # the series of the input is that of its targets, the next two steps of it
                assert bool(((ahead[..., 0] - y - 0.01)[scored].abs() < 2e-4).all())
                seen += ahead[scored][:, 0].tolist()
            else:
                assert bool(((y - 0.04)[scored].abs() < 1e-4).all())
                seen += [0.0] * int(scored.sum())
        wanted = []
        for name, n in LENGTHS.items():
            test = n - round(0.1 * n)
            first, last = {"train": (1, splits[name]), "valid": (splits[name], test), "test": (test, n)}[part]
            wanted += values(name)[max(first, season + 1) : last - 1].tolist()
        if season:
            assert len(seen) == len(wanted)
        else:
            assert sorted(seen) == pytest.approx(sorted(wanted), abs=2e-4)
    assert data.references["valid"]["mae of the last value"] == pytest.approx(0.015)


def test_the_states_are_carried_within_a_series_only(tmp_path: Path) -> None:
    data = prepare(config(tmp_path, batch=1))
    assert isinstance(data.schema, ForecastSchema)
    scaling, previous, begun = data.schema.inputs, 0.0, 0
    for i in range(2 * len(data.train)):
        batch = data.train.batch(i)
        y = batch.inputs[:, 0, 0].double() * scaling.deviation[0] + scaling.mean[0]
        if batch.carried:
            assert float(y[0]) == pytest.approx(previous + 0.01, abs=1e-4)
        else:
            assert float(y[0]) % 100 == pytest.approx(0, abs=1e-4) or float(y[0]) % 100 == pytest.approx(100, abs=1e-4)
            begun += 1
        previous = float(y[-1])
    assert begun == 6


def test_a_forecast_and_a_measurement_of_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(config(tmp_path, test_fraction=0.2), tmp_path / "run").path
    assert resume(run, steps=8).history[-1].step == 8
    found = forecast(run, quantiles=(0.5,))
    assert isinstance(found, PanelForecast) and list(found.series) == ["b", "a", "c d"]
    assert [f.rows for f in found.series.values()] == list(LENGTHS.values())
    alone = tmp_path / "alone.csv"
    table(tmp_path, ("a",), "alone.csv")
    single = forecast(run, data=alone, quantiles=(0.5,))
    assert isinstance(single, PanelForecast)
    assert single.series["a"].mean == found.series["a"].mean != found.series["b"].mean
    assert cli.main(["forecast", str(run), "--quantiles", "0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == found.csv().splitlines()
    assert lines[0] == "shop,ahead,mean,q0.5" and lines[5].startswith("c d,1,") and len(lines) == 7
    measured = evaluate(run)
    assert measured.on == "test" and list(measured.series) == ["b", "a", "c d"]
    whole, counts = measured.measures["crps"], {name: round(0.2 * n) - 1 for name, n in LENGTHS.items()}
    parts = sum(counts[name] * found["crps"] for name, found in measured.series.items()) / sum(counts.values())
    assert whole == pytest.approx(parts, rel=1e-5)
    assert measured.plain()["series"]["a"] == measured.series["a"] and "\nc d " in str(measured)
    other = evaluate(run, data=alone)
    assert list(other.series) == ["a"] and other.measures["crps"] == pytest.approx(other.series["a"]["crps"])


def test_drift_of_series_that_forecast_themselves(tmp_path: Path) -> None:
    run = train(config(tmp_path, inputs="y", valid_fraction=0.4, steps=2), tmp_path / "run").path
    assert drift(run, length=3, context=4).sequences >= 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"series": "shops"}, "has no column 'shops'"),
        ({"inputs": "y,shop"}, "'shop' tells the series apart; it is no input and no target"),
        ({"inputs": "y,id", "series": "id"}, "'id' tells the series apart; it is no input and no target"),
        (
            {"horizon": 9},
            "series 'b' is too short: of its 40 rows the part that --valid-fraction keeps has 8, too few to",
        ),
        (
            {"valid_fraction": 0.96, "horizon": 2},
            "series 'b' is too short: of its 40 rows the part to learn from has 2, too",
        ),
        ({"season": 45}, "series 'b' has 40 rows, no more than a season of 45"),
    ],
)
def test_what_cannot_be_used_says_why(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    given = {"valid_fraction": 0.2, **options}
    with pytest.raises(DataError) as caught:
        prepare(config(tmp_path, **given))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_row_without_a_series(tmp_path: Path) -> None:
    options = config(tmp_path)
    with open(options.table, "a") as file:
        file.write("9,,1,1\n")
    with pytest.raises(DataError, match="column 'shop' is empty in row 151"):
        prepare(options)
