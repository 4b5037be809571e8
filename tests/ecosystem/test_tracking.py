"""Runs in trackers: each step once whatever is killed and continued, and nothing that a tracker does stops a run."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import pytest

from throughtime.cli import main
from throughtime.ecosystem import trackers, tracking
from throughtime.ecosystem.tracking import Tracking, remembered
from throughtime.errors import ConfigError
from throughtime.train import LMConfig, resume, train
from throughtime.train.runlog import read_log


@pytest.fixture
def config(tmp_path: Path) -> LMConfig:
    words = random.Random(0).choices(["the cat ", "sat on ", "a mat.\n"], k=120)
    (tmp_path / "cats.txt").write_text("".join(words))
    return LMConfig(
        str(tmp_path / "cats.txt"), embedding=6, hidden=8, window=8, batch=4, steps=12, lr=0.01, valid_every=5,
        checkpoint_every=4, threads=1, watch_budget=100.0,
    )  # fmt: skip


class Paper:
    """A tracker that writes down what it is told."""

    needs = "json"
    made: list[Paper] = []
    fails = 10**9

    def __init__(self, place: trackers.Place) -> None:
        self.place, self.rows, self.closed = place, [], False
        Paper.made.append(self)

    def tell(self, step, numbers):
        if step >= Paper.fails:
            raise OSError("out of ink")
        self.rows.append((step, dict(numbers)))

    def close(self):
        self.closed = True


@pytest.fixture
def paper(monkeypatch):
    monkeypatch.setattr(Paper, "made", [])
    monkeypatch.setattr(Paper, "fails", 10**9)
    monkeypatch.setitem(tracking.TRACKERS, "paper", Paper)
    return Paper


def tracked(go, names=("paper",), stop_at=None, say=print, **options):
    def step(record):
        tell.step(record)
        if record.step == stop_at:
            raise KeyboardInterrupt

    with Tracking(names, say) as tell:
        return go(on_start=tell.start, on_step=step, **options)


def steps(paper, which=-1):
    return [step for step, numbers in paper.made[which].rows if "loss" in numbers]


def test_every_step_with_all_that_the_run_recorded(config, paper, tmp_path):
    result = tracked(lambda **o: train(config, tmp_path / "run", **o))
    (one,) = paper.made
    assert one.closed and one.place.name.startswith("run-") and one.place.config["hidden"] == 8
    records = read_log(tmp_path / "run/log.jsonl")
    assert steps(paper) == [r.step for r in records] == list(range(1, 13))
    told = dict(reversed(one.rows))
    assert [told[r.step]["loss"] for r in records] == [r.loss for r in records]
    assert [told[r.step].get("valid") for r in records] == [r.valid for r in records]
    places = [k for _, numbers in one.rows for k in numbers if k.startswith("gradient_horizon/")]
    assert len(places) == len(result.watched) > 0


def test_a_killed_run_goes_on_without_a_doubled_step(config, paper, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tracked(lambda **o: train(config, tmp_path / "run", **o), stop_at=7)  # the last checkpoint is that of step 5
    tracked(lambda **o: resume(tmp_path / "run", steps=14, **o))  # which leads nowhere else
    assert steps(paper, 0) == list(range(1, 8)) and steps(paper, 1) == list(range(8, 15))
    assert paper.made[0].place.name == paper.made[1].place.name
    assert remembered(tmp_path / "run") == ("paper",)


def test_what_a_tracker_missed_is_told_first(config, paper, tmp_path):
    train(config, tmp_path / "run")
    tracked(lambda **o: resume(tmp_path / "run", **o, steps=14))
    assert steps(paper) == list(range(1, 15))
    assert any("gradient_horizon/" in k for _, numbers in paper.made[0].rows[:12] for k in numbers)


def test_another_way_from_an_earlier_step_is_another_run_of_the_trackers(config, paper, tmp_path):
    tracked(lambda **o: train(config, tmp_path / "run", **o))
    tracked(lambda **o: resume(tmp_path / "run", checkpoint="step-000010", lr=0.001, **o))
    assert steps(paper, 0) == steps(paper, 1) == list(range(1, 13))
    first, second = (m.place for m in paper.made)
    assert (first.part, second.part) == (1, 2) and second.name == first.name + "-2"
    told = [dict(reversed(m.rows)) for m in paper.made]
    assert told[0][10]["loss"] == told[1][10]["loss"] and told[0][12]["loss"] != told[1][12]["loss"]


def test_the_same_way_from_an_earlier_step_is_not_told_again(config, paper, tmp_path):
    tracked(lambda **o: train(config, tmp_path / "run", **o))
    tracked(lambda **o: resume(tmp_path / "run", checkpoint="step-000010", **o))
    assert steps(paper, 1) == []


def test_a_tracker_that_breaks_is_said_once_and_the_run_goes_on(config, paper, tmp_path):
    said: list[str] = []
    paper.fails = 6
    result = tracked(lambda **o: train(config, tmp_path / "run", **o), say=said.append)
    assert len(result.history) == 12 and steps(paper) == [1, 2, 3, 4, 5]
    assert said == ["paper failed (OSError: out of ink); the run goes on without it"]


def test_a_tracker_that_does_not_open_neither(config, paper, tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(Paper, "__init__", lambda self, place: 1 / 0)
    result = tracked(lambda **o: train(config, tmp_path / "run", **o), say=said.append)
    assert len(result.history) == 12 and "ZeroDivisionError" in said[0] and len(said) == 1


def test_names_and_packages_are_looked_at_before_anything_runs(monkeypatch):
    with pytest.raises(ConfigError, match="there is no tracker 'paper'; there are tensorboard, trackio, wandb"):
        Tracking(["paper"])
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ConfigError, match=r"trackio, which is not installed: pip install throughtime\[trackio\]"):
        Tracking(["trackio"])


def test_what_was_told_before_is_told_again_if_it_can(config, paper, tmp_path, monkeypatch):
    tracked(lambda **o: train(config, tmp_path / "run", **o))
    said: list[str] = []
    monkeypatch.setattr(Paper, "needs", "no_such_package")
    assert Tracking([], said.append, remembered(tmp_path / "run")).names == []
    assert "which is not installed" in said[0] and said[0].endswith("the run goes on without it")


def test_from_the_command_line(config, paper, tmp_path, capsys):
    words = f"{config.text} --hidden 8 --window 8 --batch 4 --steps 6 --checkpoint-every 3 --threads 1".split()
    pytest.importorskip("tensorboard", reason="an optional extra")
    assert main(["train", *words, "--run", str(tmp_path / "run"), "--log-to", "tensorboard"]) == 0
    assert main(["train", "--resume", str(tmp_path / "run"), "--steps", "8"]) == 0
    told = (tmp_path / "run/trackers/tensorboard.told").read_text().split()
    assert told[:2] == ["1", "8"] and len(list((tmp_path / "run/tensorboard").iterdir())) == 2


# --- the real ones ----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch):
    import socket

    connect = socket.socket.connect

    def local_only(self, address):
        assert self.family != socket.AF_INET or address[0] in ("127.0.0.1", "localhost"), f"a connection to {address}"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


def run_in_two_parts(name, config, path):
    """Killed at 7, continued, and once more with three more steps."""
    with pytest.raises(KeyboardInterrupt):
        tracked(lambda **o: train(config, path, **o), [name], stop_at=7)
    tracked(lambda **o: resume(path, **o), [name])
    tracked(lambda **o: resume(path, steps=15, **o), [name])
    assert remembered(path) == (name,)
    return read_log(path / "log.jsonl")


def test_tensorboard(config, tmp_path, no_network):
    pytest.importorskip("tensorboard", reason="an optional extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    records = run_in_two_parts("tensorboard", config, tmp_path / "run")
    found = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    assert [e.step for e in found.Scalars("loss")] == list(range(1, 16))
    assert [e.value for e in found.Scalars("loss")] == pytest.approx([r.loss for r in records])
    assert [e.step for e in found.Scalars("valid")] == [r.step for r in records if r.valid is not None]
    assert any(tag.startswith("gradient_horizon/") for tag in found.Tags()["scalars"])


def test_trackio(config, tmp_path, no_network, monkeypatch, capsys):
    pytest.importorskip("trackio", reason="an optional extra")
    import trackio.sqlite_storage
    import trackio.utils

    monkeypatch.setattr(trackio.sqlite_storage, "TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr(trackio.utils, "TRACKIO_DIR", tmp_path / "trackio")
    records = run_in_two_parts("trackio", config, tmp_path / "run")
    storage = trackio.sqlite_storage.SQLiteStorage
    (name,) = storage.get_runs("throughtime")
    rows = storage.get_logs("throughtime", name)
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 16))
    assert [row["loss"] for row in rows if "loss" in row] == [r.loss for r in records]
    assert capsys.readouterr().out == ""


def test_wandb(config, tmp_path, no_network, monkeypatch):
    pytest.importorskip("wandb", reason="an optional extra")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.delenv("WANDB_MODE", raising=False)
    run_in_two_parts("wandb", config, tmp_path / "run")
    until = time.monotonic() + 20
    while True:  # W&B's own process may still be writing
        files = sorted((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_ctime_ns)
        found, ends = [], 0
        for data in (data for path in files for data in in_the_log(path.read_bytes())):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            found += [int(items["_step"])] if "loss" in items else []
            ends += record.HasField("exit")
        if ends == 3 or time.monotonic() > until:
            break
        time.sleep(0.05)
    assert sorted(found) == list(range(1, 16)) and len({path.name for path in files}) == 1


def in_the_log(content: bytes):
    """The records of W&B's file: LevelDB's log, blocks of 32 KiB behind a header of 7 bytes."""
    at, whole = 7, b""
    while at + 7 <= len(content):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        whole = content[at + 7 : at + 7 + size] if kind in (1, 2) else whole + content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield whole
