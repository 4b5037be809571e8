"""The files of a run, made odd anywhere: it goes on, or says in one line why not; nothing in them is ever run."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.train.runs import described

from throughtime.errors import CheckpointError, ThroughtimeError
from throughtime.train import history, load, resume, train
from throughtime.train import updates as updating
from throughtime.train.checkpoint import RESUME, read_resume, step_name

STEPS = 8
ODD = st.sampled_from(
    [None, True, [], {}, [[]], [None], {"a": 1}, "", "x", "8", "\ud800", -1, 0, 1, 7, 1.5, 1e308, 2**70, -(2**63)]
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has everything: an incident, a watch, changed options, the parts of a second process."""
    place = tmp_path_factory.mktemp("fuzz")
    real, calls = updating.total_loss, [0]

    def total_loss(*arguments: Any) -> torch.Tensor:
        calls[0] += 1
        return real(*arguments) * (torch.nan if calls[0] == 3 else 1.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(updating, "total_loss", total_loss)
        config = replace(
            described("text", place), steps=STEPS - 2, checkpoint_every=3, valid_every=3, watch_budget=0.5, accumulate=1
        )
        train(config, place / "run", on_incident=lambda found: None)
    resume(place / "run", steps=STEPS, lr=0.005)
    change_state(place / "run", lambda saved: {**saved, "others": [{k: saved[k] for k in ("rng", "cuda_rng")}]})
    return place / "run"


@pytest.fixture(scope="module")
def copies(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes copies of the run, each to be damaged."""
    place, made = tmp_path_factory.mktemp("copies"), [0]

    def copied() -> Path:
        shutil.rmtree(place / str(made[0]), ignore_errors=True)
        made[0] += 1
        return Path(shutil.copytree(whole, place / str(made[0])))

    return copied


def change_state(run: Path, change: Callable[[Any], Any], pickled: Any = torch.save) -> None:
    """Write other contents of the last resume.pt, with the sha256 that vouches for them."""
    place = run / "checkpoints" / step_name(STEPS)
    saved = torch.load(place / RESUME, weights_only=True)
    pickled(change(saved), place / RESUME)
    meta = json.loads((place / "meta.json").read_text())
    meta["sha256"][RESUME] = hashlib.sha256((place / RESUME).read_bytes()).hexdigest()
    (place / "meta.json").write_text(json.dumps(meta))


def used(run: Path) -> int:
    """Everything that reads a run; gives how many of them refused it, each in one line."""
    refused = 0
    calls: list[Callable[[], Any]] = [
        lambda: load(run, "last"),
        *(lambda of=of: history(run, of) for of in ("steps", "watch", "guard")),
    ]
    calls.append(lambda: resume(run, steps=STEPS + 1, on_incident=lambda found: None))
    for call in calls:
        try:
            call()
        except ThroughtimeError as error:
            refused += 1
            assert str(error) and "\n" not in str(error) and len(str(error)) < 3000
    return refused


def oddly(content: Any, data: st.DataObject) -> Any:
    """The same JSON with one value, anywhere in it, missing or another one."""
    content = copy.deepcopy(content)
    at, way = content, 0
    while isinstance(at, dict | list) and at:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        way += 1
        if not (isinstance(at[key], dict | list) and at[key]) or data.draw(st.integers(0, 4)) == 0:
            if data.draw(st.booleans()):
                at[key] = data.draw(ODD)
            else:
                del at[key]
            return content
        at = at[key]
    return content


def test_the_run_itself_is_whole(copies: Callable[[], Path]) -> None:
    run = copies()
    assert (run / "guard.jsonl").read_text().count("\n") == 2 and (run / "watch.jsonl").read_text().count("\n") > 2
    assert len(json.loads((run / "config.json").read_text())["changes"]) == 1
    assert set(torch.load(run / "checkpoints" / step_name(STEPS) / RESUME, weights_only=True)) >= {"guard", "others"}
    assert used(run) == 0


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_value_of_any_file_is_another_one(copies: Callable[[], Path], data: st.DataObject) -> None:
    run = copies()
    place = run / data.draw(st.sampled_from(["config.json", "schema.json", "log.jsonl", "watch.jsonl", "guard.jsonl"]))
    if place.suffix == ".json":
        place.write_text(json.dumps(oddly(json.loads(place.read_text()), data)))
    else:
        lines = place.read_text().splitlines()
        number = data.draw(st.integers(0, len(lines) - 1))
        lines[number] = json.dumps(oddly(json.loads(lines[number]), data))
        place.write_text("\n".join(lines) + "\n")
    used(run)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_bytes_of_any_file_are_lost_or_others(copies: Callable[[], Path], data: st.DataObject) -> None:
    run = copies()
    names = ["config.json", "schema.json", "log.jsonl", "watch.jsonl", "guard.jsonl"]
    place = run / data.draw(st.sampled_from([*names, f"checkpoints/{step_name(STEPS)}/{RESUME}"]))
    content = place.read_bytes()
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.one_of(st.just(len(content)), st.integers(start, min(start + 20, len(content)))))
    junk = st.one_of(st.binary(max_size=8), st.sampled_from([b"[" * 100_000, b'{"a":' * 100_000, b"9" * 900, b"\n\n"]))
    place.write_bytes(content[:start] + data.draw(junk) + content[end:])
    used(run)


def _change(value: Any, data: st.DataObject) -> Any:
    """Like `oddly`, in what torch.save wrote: tensors too."""
    if isinstance(value, dict) and value:
        key = data.draw(st.sampled_from(sorted(value, key=str)))
        rest = {k: v for k, v in value.items() if k != key}
        return rest if data.draw(st.integers(0, 5)) == 0 else {**value, key: _change(value[key], data)}
    if isinstance(value, list | tuple) and value:
        number = data.draw(st.integers(0, len(value) - 1))
        return type(value)(_change(v, data) if n == number else v for n, v in enumerate(value))
    return data.draw(st.one_of(ODD, st.sampled_from([torch.zeros(0), torch.zeros(3, 2), torch.zeros(2).long()])))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_value_of_the_state_is_another_one(copies: Callable[[], Path], data: st.DataObject) -> None:
    run = copies()
    part = data.draw(st.sampled_from(["guard", "others", "state", "optimiser", "position", "rng"]))
    change_state(run, lambda saved: {**saved, part: _change(saved[part], data)})
    used(run)


@pytest.mark.parametrize("part", ["others", "guard", "everything"])
def test_code_in_a_state_is_never_run(copies: Callable[[], Path], tmp_path: Path, part: str) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "owned"),)

    def plainly(content: Any, path: Path) -> None:
        path.write_bytes(pickle.dumps(content))

    contents: dict[str, Callable[[Any], Any]] = {
        "others": lambda saved: {**saved, "others": [Evil()]},
        "guard": lambda saved: {**saved, "guard": {**saved["guard"], "grounds": Evil()}},
        "everything": lambda saved: Evil(),
    }
    for pickled in (torch.save, plainly):
        run = copies()
        change_state(run, contents[part], pickled)
        with pytest.raises(CheckpointError, match=r"resume.pt cannot be read") as caught:
            resume(run, steps=STEPS + 1)
        assert "\n" not in str(caught.value)
        with pytest.raises(CheckpointError):
            read_resume(run / "checkpoints" / step_name(STEPS), described("text", tmp_path).digest())
    assert not (tmp_path / "owned").exists()
