"""Pages of runs of every kind: made from what the trainer wrote, with the kind's own loss and targets."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.train.runs import KINDS, described
from throughtime.diagnosis.history import read_history
from throughtime.errors import ConfigError, DataError
from throughtime.report import write
from throughtime.report.runs import run_page
from throughtime.train import ForecastConfig, TaskConfig, train
from throughtime.train.runlog import read_log

UNITS = {
    "text": "bits per character", "forecast": "nats per value", "label": "nats per sequence", "notes": "nats per step",
    "task": "squared error",
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for kind in KINDS:
        place = tmp_path_factory.mktemp(kind)
        config = replace(described(kind, place), watch_budget=0.5)
        found[kind] = train(config, place / "run").path
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_page(runs: dict[str, Path], kind: str, read: Any, tmp_path: Path) -> None:
    page = run_page(runs[kind])
    data = read(page).data
    log = read_log(runs[kind] / "log.jsonl")
    last, first = data["models"][-1], data["models"][0]
    assert page.loss_unit == data["lossUnit"] == UNITS[kind] and UNITS[kind] in read(page).text
    assert last["history"]["train"]["bits"] == [pytest.approx(r.loss, rel=1e-5) for r in log]
    assert [n for m in data["models"] for n in m["norms"]] == [[r.step, pytest.approx(r.grad_norm, 1e-5)] for r in log]
    assert first["profile"] and first["gates"] and first["shares"] and first["eigenvalues"]
    assert bool(first["maps"]) == (kind != "task")  # both directions of a label's layer meet the loss at their own ends
    assert ("there is no map" in read(page).text) == (kind == "task")
    assert (last["reading"] is not None) == (kind == "text")
    assert write(page, tmp_path / "x.html").stat().st_size < 400_000


@pytest.mark.parametrize("kind", KINDS)
def test_the_horizons_over_training_are_those_of_the_watch(runs: dict[str, Path], kind: str, read: Any) -> None:
    records = read_history(runs[kind] / "watch.jsonl").records
    wanted = sorted([r.step, s.horizon.steps] for r in records for s in r.recurrences if s.horizon is not None)
    made = read(run_page(runs[kind], use=False))
    shown = [[step, h["steps"]] for m in made.data["models"] for step, h in m["watched"]]
    assert wanted and sorted(shown) == wanted
    assert any(tag.get("data-figure") == "watched" for tag in made.named("figure"))


def test_a_run_without_a_watch_has_no_such_figure(runs: dict[str, Path], tmp_path: Path, read: Any) -> None:
    shutil.copytree(runs["task"], tmp_path / "run")
    (tmp_path / "run" / "watch.jsonl").unlink()
    made = read(run_page(tmp_path / "run", use=False))
    assert all(tag.get("data-figure") != "watched" for tag in made.named("figure"))


def test_a_table_of_several_series(tmp_path: Path) -> None:
    rows = "".join(f"{name},{(t * (n + 2)) % 7}.5\n" for n, name in enumerate("abcd") for t in range(60))
    (tmp_path / "p.csv").write_text("n,s\n" + rows)
    config = ForecastConfig(
        str(tmp_path / "p.csv"), target="s", series="n", horizon=2, window=6, batch=2, hidden=4, steps=4, threads=1,
        valid_every=4,
    )  # fmt: skip
    page = run_page(train(config, tmp_path / "run").path)
    assert page.loss_unit == "nats per value" and page.models[0].maps
    told = {row[0] for table in page.tables for row in table.rows}
    assert told >= {"nats per value", "crps", "mae of the last value"}


def test_a_task_says_what_it_asks_for(tmp_path: Path) -> None:
    config = TaskConfig("adding", lag=6, batch=16, hidden=4, steps=4, threads=1, valid_every=4)
    page = run_page(train(config, tmp_path / "run").path)
    assert page.asks == "The task" and page.data_horizon is not None and page.data_horizon.steps >= 4
    assert page.floors["loss without memory"] == pytest.approx(1 / 6, rel=1e-3)
    assert any("is made so that a target is decided by inputs 0 to 5 steps" in f.what for f in page.findings)


def test_data_that_were_moved_or_changed(runs: dict[str, Path], tmp_path: Path) -> None:
    source = runs["notes"].parent / "r.npz"
    shutil.copy(source, tmp_path / "moved.npz")
    assert run_page(runs["notes"], text=tmp_path / "moved.npz", use=False).models
    with pytest.raises(DataError, match="there is no file"):
        run_page(runs["notes"], text=tmp_path / "gone.npz")
    with pytest.raises(ConfigError, match="generated"):
        run_page(runs["task"], text=source)
