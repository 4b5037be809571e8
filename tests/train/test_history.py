"""Histories as plain rows: of a run, a watch, a guard, from disk and from memory, for pandas and as CSV."""

from __future__ import annotations

import csv
import io
import math
import sys
from pathlib import Path

import pytest
import torch
from tests.ecosystem.snippets import under
from torch import nn

import throughtime as tt
from throughtime import cures
from throughtime.errors import CheckpointError, ConfigError
from throughtime.train import History, history, train
from throughtime.train.runlog import read_log


@pytest.fixture
def result(tiny, tmp_path: Path):
    return train(tiny(steps=12, valid_every=5, watch_budget=100.0), tmp_path / "run")


def test_steps(result):
    rows = history(result.path)
    assert rows == [{"valid": None, **vars(r)} for r in read_log(result.path / "log.jsonl")]
    assert rows == history(result) and isinstance(rows[3:5], History) and len(rows[3:5]) == 2
    assert rows.column("step") == list(range(1, 13)) and list(rows[0]) == list(rows.columns)
    with pytest.raises(ConfigError, match="no column 'los'; the columns are step, loss"):
        rows.column("los")


def test_watch(result):
    rows = history(result.path, "watch")
    assert rows == history(result, "watch") == history(result.path / "watch.jsonl")
    seen = [(record.step, s) for record in result.watched for s in record.recurrences]
    assert [row["step"] for row in rows] == [step for step, _ in seen] and len(rows) > 1
    assert [row["horizon"] for row in rows] == [s.horizon.steps for _, s in seen]
    assert rows[0]["recurrence"] == "recurrent, layer 0" and rows[0]["window"] == 8


def guarded(tmp_path: Path):
    model = nn.LSTM(2, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    log = cures.IncidentLog(tmp_path / "guard.jsonl")
    guard = tt.Guard(model, optimizer, on_incident=log)
    for factor in (1.0, math.nan):
        with guard.step() as step:
            optimizer.zero_grad()
            step.backward(model(torch.randn(4, 2, 2) * factor)[0].sum())
            optimizer.step()
    log.close()
    return guard


def test_guard(result, tmp_path):
    guard = guarded(tmp_path)
    rows = history(guard)
    assert rows == history(guard, "guard") == history(tmp_path / "guard.jsonl")
    assert [(row["step"], row["done"]) for row in rows] == [(1, "skipped the step")] and "bad input" in rows[0]["text"]
    assert history(result.path, "guard") == history(result, "guard") == []
    assert history(result.path, "guard").columns == ("step", "fault", "done", "text")


def test_a_watch_of_somebodys_own_loop():
    model = nn.LSTM(2, 3)
    with tt.watch(model, budget=math.inf) as watch:
        for _ in range(3):
            model(torch.randn(5, 2, 2))[0].sum().backward()
    rows = history(watch)
    assert [row["step"] for row in rows] == [1, 2, 3] and rows.of == "watch" and rows[0]["cell"] == "LSTM"


def test_csv_needs_no_pandas(result, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    rows = history(result.path)
    text = rows.csv(tmp_path / "steps.csv")
    assert (tmp_path / "steps.csv").read_text() == text
    found = list(csv.DictReader(io.StringIO(text)))
    assert [float(row["loss"]) for row in found] == rows.column("loss")
    assert [row["valid"] == "" for row in found] == [v is None for v in rows.column("valid")]
    with pytest.raises(ConfigError, match=r"pip install throughtime\[pandas\]"):
        rows.frame()


def test_frames(result):
    pandas = pytest.importorskip("pandas", reason="an optional extra")
    frame = history(result.path, frame=True)
    pandas.testing.assert_frame_equal(frame, pandas.DataFrame(history(result.path)))
    assert frame["loss"].tolist() == [r.loss for r in result.history] and frame["valid"].count() == 3
    assert list(history(result.path, "guard", frame=True).columns) == ["step", "fault", "done", "text"]


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[1]\n", b"{}\n", b'{"throughtime": "guard", "format": 1}\n{"x"\n']
)
def test_files_that_are_none(content, tmp_path):
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.jsonl"):
        history(tmp_path / "x.jsonl")


def test_a_line_cut_short_is_left_out(tmp_path):
    guarded(tmp_path)
    whole = (tmp_path / "guard.jsonl").read_bytes()
    (tmp_path / "guard.jsonl").write_bytes(whole + whole.splitlines()[1][:30])
    assert len(history(tmp_path / "guard.jsonl")) == 1


def test_the_page_is_true(result, tmp_path, monkeypatch):
    pytest.importorskip("pandas", reason="an optional extra")
    monkeypatch.chdir(tmp_path)
    exec(under("pandas"), {"run": result.path})
    assert len((tmp_path / "steps.csv").read_text().splitlines()) == 13


def test_what_has_no_history(tmp_path, result):
    with pytest.raises(CheckpointError, match="neither a run nor a history"):
        history(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="is not a run"):
        history(tmp_path)
    with pytest.raises(ConfigError, match="a int has no history of this kind"):
        history(3)
    with pytest.raises(ConfigError, match="of must be one of steps, watch, guard"):
        history(result.path, "loss")
