"""What the live view sees of runs: logs that grow, are cut, begin again or hold nonsense; checkpoints on demand."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from throughtime.diagnosis import read_history
from throughtime.errors import ConfigError, ThroughtimeError
from throughtime.live.checkpoints import Checkpoints
from throughtime.live.follow import POINTS, Tail, find, follow
from throughtime.train import LMConfig, TaskConfig, load, read_text, train
from throughtime.train.gradient import run_flow, text_flow
from throughtime.train.loop import load_from
from throughtime.train.opened import open_run


def line(step: int, **more: Any) -> str:
    return json.dumps({"step": step, "loss": 2.0 / step, "grad_norm": 0.5, "seconds": 0.1, **more}) + "\n"


def run_at(path: Path, steps: int = 10, lines: str = "") -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"config": {"steps": steps}}))
    (path / "log.jsonl").write_text(lines)
    return path


def watch_at(path: Path, *records: dict[str, Any]) -> Path:
    head = {"throughtime": "watch", "format": 1, "model": "Net", "budget": 0.02}
    path.write_text("".join(json.dumps(r) + "\n" for r in (head, *records)))
    return path


def test_lines_come_once_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    tail = Tail(path)
    assert tail.read() == (False, [])
    path.write_text('{"a": 1}\n{"a"')
    assert tail.read() == (True, [{"a": 1}])
    with path.open("a") as file:
        file.write(': 2}\nno json\n[1]\n{"a": 3}\n')
    assert tail.read() == (False, [{"a": 2}, {"a": 3}])
    assert tail.read() == (False, [])


@pytest.mark.parametrize("how", ["cut", "replaced"])
def test_a_file_that_begins_again_is_read_again(tmp_path: Path, how: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    tail = Tail(path)
    tail.read()
    if how == "cut":
        path.write_text('{"a": 1}\n')
    else:  # as a run that is continued does: a new file moved into place, not shorter than the old one
        (tmp_path / "new").write_text('{"a": 1}\n{"a": 2}\n{"a": 3}\n')
        os.replace(tmp_path / "new", path)
    anew, lines = tail.read()
    assert anew and lines[0] == {"a": 1} and len(lines) == (1 if how == "cut" else 3)


def test_runs_are_found_and_nothing_else(tmp_path: Path) -> None:
    run_at(tmp_path / "a")
    run_at(tmp_path / "deep" / "er" / "b")
    run_at(tmp_path / "1" / "2" / "3" / "4")  # too deep
    run_at(tmp_path / ".hidden" / "c")
    (tmp_path / "log.jsonl").write_text(line(1))  # no config beside it
    (tmp_path / "other.jsonl").write_text('{"throughtime": "something"}\n')
    watch_at(tmp_path / "watch.jsonl")
    assert {r.name for r in find(tmp_path).values()} == {"a", os.path.join("deep", "er", "b"), "watch.jsonl"}
    assert [r.name for r in find(tmp_path / "a").values()] == ["a"]
    with pytest.raises(ConfigError, match="there is no folder"):
        find(tmp_path / "nowhere")


def test_what_a_page_is_told(tmp_path: Path) -> None:
    run = run_at(tmp_path / "a", steps=3, lines=line(1) + line(2, valid=1.5))
    told = follow(tmp_path, every=0)
    first = next(told)
    assert first is not None and first["began"] and first["gone"] == []
    [a] = first["runs"]
    assert a["anew"] and a["points"] == [[1, 2.0, 0.5, None], [2, 1.0, 0.5, 1.5]]
    assert (a["step"], a["steps"], a["state"], a["alarms"]) == (2, 3, "training", [])
    assert next(told) is None
    with (run / "log.jsonl").open("a") as file:
        file.write(line(3))
    second = next(told)
    assert second is not None and not second["began"]
    assert second["runs"][0]["points"] == [[3, 2.0 / 3, 0.5, None]] and not second["runs"][0]["anew"]
    assert second["runs"][0]["state"] == "finished"
    run_at(tmp_path / "b", lines=line(1))
    third = next(told)
    assert third is not None and [r["name"] for r in third["runs"]] == ["b"]
    (run / "log.jsonl").unlink()
    fourth = next(told)
    assert fourth is not None and fourth["gone"] == [a["id"]]


def test_numbers_that_are_none_raise_an_alarm(tmp_path: Path) -> None:
    run_at(tmp_path / "a", lines=line(1) + line(2, loss=math.nan) + line(3, grad_norm=math.inf) + '{"step": "x"}\n')
    first = next(follow(tmp_path, every=0))
    assert first is not None
    [a] = first["runs"]
    assert a["points"][1][1] == "NaN" and a["points"][2][2] == "infinite" and len(a["points"]) == 3
    assert a["alarms"] == ["step 2: the loss is NaN", "step 3: the gradient norm is infinite"]


def test_a_watched_training_tells_its_horizons_and_its_troubles(tmp_path: Path) -> None:
    seen = {"name": "rnn", "layer": 0, "reverse": False, "horizon": {"steps": 12, "at_least": True}}
    dead = {"name": "rnn", "layer": 1, "reverse": True, "horizon": None, "problem": "no gradient enters"}
    record = {"step": 5, "loss": 1.5, "grad_norm": "inf", "recurrences": [seen, dead, 7], "notes": ["cut short"]}
    watch_at(tmp_path / "w.jsonl", record, {"end": True, "steps": 9, "cost": 0.02, "notes": ["forked"]})
    first = next(follow(tmp_path, every=0))
    assert first is not None
    [w] = first["runs"]
    assert w["horizons"] == [[5, 12, True, "rnn, layer 0"]] and w["state"] == "finished"
    assert w["alarms"] == [
        "cut short", "step 5: the gradient norm is infinite", "step 5: rnn, layer 1, reverse: no gradient enters",
        "forked",
    ]  # fmt: skip


def test_the_incidents_of_a_guard_are_alarms(tmp_path: Path) -> None:
    lines = [{"throughtime": "guard", "format": 1}, {"iteration": 7, "fault": "the loss is NaN", "done": "skipped"}]
    (tmp_path / "guard.jsonl").write_text("".join(json.dumps(v) + "\n" for v in lines))
    first = next(follow(tmp_path, every=0))
    assert first is not None
    [g] = first["runs"]
    assert g["kind"] == "guard" and g["step"] == 7 and g["points"] == []
    assert g["alarms"] == ["iteration 7: the loss is NaN; skipped"]


def test_long_logs_are_thinned_and_validation_stays(tmp_path: Path) -> None:
    lines = "".join(line(s, **({"valid": 1.0} if s == 777 else {})) for s in range(1, 5 * POINTS))
    run_at(tmp_path / "a", lines=lines)
    first = next(follow(tmp_path, every=0))
    assert first is not None
    [a] = first["runs"]
    assert len(a["points"]) <= POINTS + 1 and a["step"] == 5 * POINTS - 1
    assert [p[0] for p in a["points"] if p[3] is not None] == [777]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    (root / "text.txt").write_text("to be or not to be, that is the question. " * 60)
    config = LMConfig(
        text=str(root / "text.txt"), cell="gru", hidden=8, embedding=4, window=16, batch=4, steps=6, valid_every=3,
        checkpoint_every=3, threads=1,
    )  # fmt: skip
    train(config, root / "run")
    return root


def test_what_the_watch_saw_of_a_run_is_told_with_it(trained: Path) -> None:
    first = next(follow(trained, every=0))
    assert first is not None
    [run] = first["runs"]  # and not one more for its watch.jsonl
    records = [r for r in read_history(trained / "run" / "watch.jsonl").records if r.recurrences]
    assert run["kind"] == "train" and run["watched_anew"] and len(run["points"]) == 6 and records
    assert [h[:2] for h in run["horizons"]] == [[r.step, r.recurrences[0].horizon.steps] for r in records]
    assert run["state"] == "finished" and run["step"] == 6


def test_what_the_guard_did_in_a_run_is_its_alarm(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 60)
    config = LMConfig(
        text=str(tmp_path / "text.txt"), cell="rnn-relu", hidden=8, embedding=4, window=8, batch=4, steps=12, lr=50.0,
        optimiser="sgd", clip_norm=0.0, checkpoint_every=4, threads=1, watch_budget=0.0,
    )  # fmt: skip
    incidents = train(config, tmp_path / "run", on_incident=lambda _: None).incidents
    assert incidents
    first = next(follow(tmp_path, every=0))
    assert first is not None
    [run] = first["runs"]
    steps = [f"step {i.iteration}: " for i in incidents]
    assert len(run["alarms"]) == len(steps)
    assert all(alarm.startswith(step) for alarm, step in zip(run["alarms"], sorted(steps), strict=True))
    assert [p[0] for p in run["points"]] == list(range(1, 13))


def test_a_watch_that_is_cut_begins_anew_and_the_log_goes_on(tmp_path: Path) -> None:
    run = run_at(tmp_path / "a", steps=9, lines=line(1) + line(2))
    seen = {"name": "rnn", "layer": 0, "reverse": False, "horizon": {"steps": 12, "at_least": False}}
    watch_at(
        run / "watch.jsonl", {"step": 1, "recurrences": [seen]}, {"step": 2, "recurrences": [seen], "notes": ["n"]}
    )
    told = follow(tmp_path, every=0)
    first = next(told)
    assert first is not None and [h[0] for h in first["runs"][0]["horizons"]] == [1, 2]
    assert first["runs"][0]["alarms"] == ["n"]
    watch_at(run / "watch.jsonl", {"step": 1, "recurrences": [seen]})  # the run has gone back
    second = next(told)
    assert second is not None
    [a] = second["runs"]
    assert a["watched_anew"] and [h[0] for h in a["horizons"]] == [1] and a["alarms"] == []
    assert not a["anew"] and a["points"] == [] and a["step"] == 2


def test_the_latest_checkpoint_is_measured_once(trained: Path) -> None:
    measured = Checkpoints(trained)
    [run_id] = find(trained)
    told = measured.measure(run_id)
    assert told["checkpoint"] == "step-000006" and measured.measure(run_id)["flow"] is told["flow"]
    model = load(trained / "run", "last")
    text = read_text(model.config, model.vocabulary)
    assert text.valid is not None
    flow = text_flow(model, text.valid, windows=2)
    assert told["flow"]["h"]["profile"] == flow.profile("h").tolist()
    assert told["horizons"] == [[6, flow.horizon("z").steps, flow.horizon("z").at_least]]


def test_a_run_of_another_kind_is_measured_on_its_own_data(tmp_path: Path) -> None:
    config = TaskConfig("adding", lag=6, hidden=6, batch=8, steps=4, valid_every=2, checkpoint_every=2, threads=1)
    train(config, tmp_path / "run")
    [run_id] = find(tmp_path)
    told = Checkpoints(tmp_path).measure(run_id)
    opened = open_run(tmp_path / "run")
    assert opened.data.valid is not None
    flow = run_flow(load_from(opened.run, "last"), opened.data.valid)
    assert told["checkpoint"] == "step-000004" and told["flow"]["h"]["profile"] == flow.profile("h").tolist()
    assert told["horizons"] == [[4, flow.horizon("z").steps, flow.horizon("z").at_least]]


def test_no_other_file_is_reached(trained: Path) -> None:
    for run_id in ("", "../../etc/passwd", "/etc/passwd", str(trained / "run")):
        with pytest.raises(ConfigError, match="no such run"):
            Checkpoints(trained).measure(run_id)


def test_a_damaged_checkpoint_is_told_in_one_line(trained: Path, tmp_path: Path) -> None:

    shutil.copytree(trained / "run", tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-000006" / "model.safetensors").write_bytes(b"not a model")
    [run_id] = find(tmp_path)
    with pytest.raises(ThroughtimeError):
        Checkpoints(tmp_path).measure(run_id)
