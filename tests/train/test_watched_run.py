"""The watch inside a run: the same numbers with it, its steps those of the run, its history cut where the log is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.train.runs import KINDS, Stop, assert_same_run, crash_at, described, numbers, signal_at
from tests.train.test_guarded_run import bad_at, too_long

from throughtime.diagnosis import read_history
from throughtime.errors import CheckpointError
from throughtime.live.follow import Run as Followed
from throughtime.train import LMConfig, TrainingStopped, resume, train
from throughtime.train.runlog import read_log

Tiny = Callable[..., LMConfig]


def bare(history: Any) -> list[Any]:
    """What of the records does not depend on the clock."""
    return [replace(r, seconds=0.0, spent=0.0, cost=0.0) for r in history]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_bit_for_bit_the_one_that_nobody_watches(kind: str, tmp_path: Path) -> None:
    config = described(kind, tmp_path)
    alone = train(replace(config, watch_budget=0.0), tmp_path / "alone")
    assert alone.watched == [] and not (tmp_path / "alone" / "watch.jsonl").exists()
    for budget in (0.02, math.inf):
        run = tmp_path / f"{budget}"
        config = replace(config, watch_budget=min(budget, 1e300))
        result = train(config, run)
        assert numbers(result) == numbers(alone)
        assert_same_run(tmp_path / "alone", run)
        assert result.watched[0].recurrences[0].horizon is not None  # however short the run is
    assert [r.step for r in result.watched] == list(range(1, 21))  # of the last, which measured each step


def test_the_records_are_those_of_the_runs_steps(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = train(tiny(steps=12, watch_budget=1e300, accumulate=1), run)
    found = read_history(run / "watch.jsonl")
    assert (
        found.ended and found.steps == 12 and found.model == "LanguageModel" and list(found.records) == result.watched
    )
    for seen, logged in zip(found.records, read_log(run / "log.jsonl"), strict=True):
        assert seen.step == logged.step
        assert seen.loss == pytest.approx(logged.loss * math.log(2), rel=1e-6)  # nats, bits
        assert seen.grad_norm == pytest.approx(logged.grad_norm, rel=1e-5)
        assert set(seen.updates) == set(seen.grad_norms) and all(v > 0 for v in seen.updates.values())
    shown = Followed("run", run / "watch.jsonl", "watch").look(True)
    assert shown is not None and len(shown["horizons"]) == 12 and shown["state"] == "finished"


def test_of_several_windows_to_an_update_the_first_is_measured(tiny: Tiny, tmp_path: Path) -> None:
    result = train(tiny(steps=6, accumulate=3, watch_budget=1e300), tmp_path / "run")
    assert [r.step for r in result.watched] == list(range(1, 7))


@pytest.mark.parametrize("how", ["crash", "signal"])
def test_a_continued_run_goes_on_with_its_history(tiny: Tiny, tmp_path: Path, how: str) -> None:
    config = tiny(dropout=0.2, watch_budget=1e300)
    whole = train(config, tmp_path / "whole")
    run = tmp_path / "run"
    with pytest.raises((Stop, TrainingStopped)):
        train(config, run, on_step=crash_at(17) if how == "crash" else signal_at(17))
    assert read_history(run / "watch.jsonl").records[-1].step >= 16
    parts = resume(run)
    assert numbers(parts) == numbers(whole)
    assert bare(parts.watched) == bare(whole.watched)
    lines = [json.loads(line) for line in (run / "watch.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "step" in line] == list(range(1, 31))
    assert sum("end" in line for line in lines) == 1 and sum("throughtime" in line for line in lines) == 1
    resume(run, checkpoint="step-000020", watch_budget=0.0)  # what came after is gone from it, watched or not
    assert [r.step for r in read_history(run / "watch.jsonl").records] == list(range(1, 21))


def test_a_run_that_goes_back_takes_its_history_back(tiny: Tiny, tmp_path: Path) -> None:
    config = too_long(tiny, watch_budget=1e300)
    result = train(config, tmp_path / "run", on_incident=lambda i: None)
    assert {i.action for i in result.incidents} == {"skip", "back"}
    steps = [r.step for r in result.watched]
    assert steps == sorted(set(steps)) and set(steps) <= set(range(1, 31)) and len(steps) > 25
    assert list(read_history(tmp_path / "run" / "watch.jsonl").records) == result.watched
    alone = train(replace(config, watch_budget=0.0), tmp_path / "alone", on_incident=lambda i: None)
    assert numbers(alone) == numbers(result)


def test_what_the_guard_runs_again_is_not_watched(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad_at(monkeypatch, [4])
    result = train(tiny(steps=10, watch_budget=1e300), tmp_path / "run", on_incident=lambda i: None)
    assert len(result.incidents) == 1
    steps = [r.step for r in result.watched]
    assert steps == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10]  # the bad windows, and those that made the update
    assert math.isnan(result.watched[4].loss or 0.0) and result.watched[4].updates == {}


def test_a_history_that_is_none_is_refused_before_anything_is_changed(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny(steps=10), run)
    (run / "watch.jsonl").write_text("what is this\n")
    with pytest.raises(CheckpointError, match=r"watch\.jsonl is no history of tt\.watch"):
        resume(run, steps=12)
    assert len(read_log(run / "log.jsonl")) == 10
