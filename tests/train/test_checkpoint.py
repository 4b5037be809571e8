"""Tests of checkpoints and run directories: damaged, foreign, half-written, unwritable."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from throughtime import files as files_module
from throughtime.errors import CheckpointError, ConfigError, ThroughtimeError
from throughtime.files import WriteError
from throughtime.train import LMConfig, load, resume, train
from throughtime.train.checkpoint import find, save, steps_in

Tiny = Callable[..., LMConfig]


@pytest.fixture
def run(tiny: Tiny, tmp_path: Path) -> Path:
    train(tiny(steps=20), tmp_path / "run")
    assert steps_in(tmp_path / "run" / "checkpoints") == [10, 20]
    return tmp_path / "run"


def rewrite(place: Path, name: str, content: bytes) -> None:
    """Change a file of a checkpoint together with the sha256 that vouches for it."""
    import hashlib

    (place / name).write_bytes(content)
    meta = json.loads((place / "meta.json").read_text())
    meta["sha256"][name] = hashlib.sha256(content).hexdigest()
    (place / "meta.json").write_text(json.dumps(meta))


def damage(place: Path, how: str) -> None:
    weights, state, meta = place / "model.safetensors", place / "resume.pt", place / "meta.json"
    tensors = safetensors.torch.load_file(weights)
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-7])
    elif how == "flipped":
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
    elif how == "missing weights":
        weights.unlink()
    elif how == "missing state":
        state.unlink()
    elif how == "missing meta":
        meta.unlink()
    elif how == "no json":
        meta.write_text("{")
    elif how == "incomplete meta":
        meta.write_text('{"format": 2}')
    elif how == "other version":
        meta.write_text(meta.read_text().replace('"format": 2', '"format": 3'))
    elif how == "other config":
        meta.write_text(json.dumps({**json.loads(meta.read_text()), "config": "0" * 64}))
    elif how == "other size":
        rewrite(place, weights.name, safetensors.torch.save({**tensors, "output.bias": torch.zeros(3)}))
    elif how == "tensor too few":
        rewrite(
            place,
            weights.name,
            safetensors.torch.save({k: v for k, v in tensors.items() if k != "output.bias"}),
        )
    elif how == "tensor too many":
        rewrite(place, weights.name, safetensors.torch.save({**tensors, "extra": torch.zeros(3)}))
    elif how == "no tensors":
        rewrite(place, weights.name, b"not tensors at all")
    elif how == "no archive":
        rewrite(place, state.name, b"not an archive")
    elif how == "not a state":
        torch.save([1, 2], place / "x")
        rewrite(place, state.name, (place / "x").read_bytes())
    elif how == "empty state":
        torch.save({}, place / "x")
        rewrite(place, state.name, (place / "x").read_bytes())


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("truncated", "model.safetensors is not what was written (its sha256 differs); use the previous one"),
        ("flipped", "resume.pt is not what was written"),
        ("missing weights", "is not complete: model.safetensors is missing"),
        ("missing state", "is not complete: resume.pt is missing"),
        ("missing meta", "is not complete: meta.json is missing"),
        ("no json", "is damaged: meta.json cannot be read"),
        ("incomplete meta", "is damaged: meta.json is not complete"),
        ("other version", "has format 3, and this version of throughtime reads format 2; use that version"),
        ("other config", "belongs to another config"),
        ("other size", "does not fit the model: output.bias is [3] in model.safetensors and ["),
        ("tensor too few", "model.safetensors has no tensor output.bias"),
        ("tensor too many", "has a tensor extra that the model does not know"),
        ("no tensors", "model.safetensors cannot be read"),
        ("no archive", "resume.pt cannot be read"),
        ("not a state", "resume.pt is not what a run saves"),
        ("empty state", "does not fit the run: resume.pt: KeyError('optimiser')"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_says_so_and_names_another(run: Path, how: str, says: str) -> None:
    damage(run / "checkpoints" / "step-000020", how)
    log = (run / "log.jsonl").read_bytes()
    with pytest.raises(CheckpointError) as caught:
        resume(run, steps=30)
    message = str(caught.value)
    assert says in message and "step-000020" in message and "\n" not in message
    if how not in ("other version", "other config"):
        assert "use the previous one with --checkpoint step-000010" in message
    assert (run / "log.jsonl").read_bytes() == log  # a failed attempt changes nothing
    assert len(resume(run, checkpoint="step-000010", steps=30).history) == 30


def test_a_later_one_is_named_where_there_is_no_earlier_and_none_where_there_is_none(run: Path) -> None:
    damage(run / "checkpoints" / "step-000010", "truncated")
    with pytest.raises(CheckpointError, match="use the later one with --checkpoint step-000020"):
        load(run, "step-000010")
    shutil.rmtree(run / "checkpoints" / "step-000020")
    with pytest.raises(CheckpointError, match="there is no other, so start the run again"):
        load(run, "step-000010")


def test_loading_never_runs_code(run: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "owned"),)

    place = run / "checkpoints" / "step-000020"
    torch.save({"optimiser": Evil()}, place / "x")
    for content in (pickle.dumps(Evil()), (place / "x").read_bytes()):
        rewrite(place, "resume.pt", content)
        with pytest.raises(CheckpointError, match=r"resume.pt cannot be read"):
            resume(run, steps=30)
    assert not (tmp_path / "owned").exists()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_gives_one_line(run: Path, data: st.DataObject) -> None:
    places = [*run.glob("*.json"), *run.glob("checkpoints/step-000020/*")]
    place = data.draw(st.sampled_from(sorted(places)))
    original = place.read_bytes()
    cut = data.draw(st.integers(0, len(original) - 1))
    junk = data.draw(st.binary(max_size=8))
    try:
        place.write_bytes(original[:cut] + junk)
        load(run, "last")
    except ThroughtimeError as error:
        assert "\n" not in str(error) and len(str(error)) < 900
    else:  # only what loading does not need may be damaged and not be noticed
        assert place.name == "resume.pt" or original.startswith(original[:cut] + junk) or cut > len(original) - 9
    finally:
        place.write_bytes(original)


@pytest.mark.parametrize(
    ("which", "says"),
    [
        ("step-000011", "no checkpoint 'step-000011' in .*; there are step-000010, step-000020"),
        ("../x", "no checkpoint"),
    ],
)
def test_a_checkpoint_that_is_not_there(run: Path, which: str, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        load(run, which)


def test_the_best_and_the_last_two_are_kept(tmp_path: Path) -> None:
    from throughtime.train.checkpoint import Best, prune

    directory = tmp_path / "checkpoints"
    for step, best in [(10, 10), (20, 20), (30, 20), (40, 20), (50, 20), (60, 60), (70, 60), (80, 60)]:
        save(directory, step, "digest", {"w": torch.zeros(2)}, {}, Best(1.0, best))
        prune(directory, 2)
        assert steps_in(directory) == sorted({best, *range(max(10, step - 10), step + 1, 10)} | (
            {20} if step == 60 else set()
        ))  # step 50, still kept at 60, knows of 20 as its best  # fmt: skip
    assert find(directory, "best").name == "step-000060" and find(directory, "last").name == "step-000080"


def test_a_half_written_checkpoint_is_not_seen_and_is_removed_on_resuming(run: Path) -> None:
    leftover = run / "checkpoints" / ".tmp-step-000030"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    assert find(run / "checkpoints", "last").name == "step-000020"
    resume(run, steps=25)
    assert not leftover.exists()


def test_a_full_disk_ends_the_run_and_keeps_the_last_checkpoint(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    whole = train(tiny(), tmp_path / "whole")
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if target.name == "step-000020":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    monkeypatch.setattr(files_module.os, "rename", rename)
    with pytest.raises(WriteError, match=r"cannot write \S+step-000020: No space left on device"):
        train(tiny(), run)
    assert sorted(os.listdir(run / "checkpoints")) == ["step-000000", "step-000010"]
    monkeypatch.undo()
    assert [r.loss for r in resume(run).history] == [r.loss for r in whole.history]


def test_a_run_that_cannot_begin_leaves_nothing(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteError, match=r"cannot write .*file/run: Not a directory"):
        train(tiny(), tmp_path / "file" / "run")
    with pytest.raises(ConfigError, match="already exists"):
        train(tiny(), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "x"

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "empty").mkdir()
    for call in ("replace", "rename"):  # the first file, and the first checkpoint
        monkeypatch.setattr(files_module.os, call, full)
        for place in ("new", "empty"):
            with pytest.raises(WriteError, match="No space left on device"):
                train(tiny(), tmp_path / place)
        monkeypatch.undo()
    assert not (tmp_path / "new").exists() and os.listdir(tmp_path / "empty") == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_permission(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(WriteError, match="Permission denied"):
        train(tiny(), tmp_path / "closed" / "run")


def test_an_existing_run_is_not_overwritten(run: Path, tiny: Tiny) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.raises(
        ConfigError,
        match=r"already exists and is left as it is; continue it with `throughtime train --resume",
    ):
        train(tiny(), run)
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("config.json", None, "is not a run of throughtime train: it has no config.json"),
        ("config.json", "[]", "config.json is damaged"),
        (
            "config.json",
            '{"format": 7}',
            "config.json has format 7, and this version of throughtime reads format 2",
        ),
        ("config.json", '{"format": 2}', "config.json is damaged (there is no kind None of run"),
        ("config.json", '{"format": 2, "kind": "text"}', "config.json is damaged (it has no options)"),
        ("config.json", '{"format": 2, "kind": "text", "config": {}}', "options are missing"),
        (
            "config.json",
            '{"format": 2, "kind": "text", "config": {"text": "x", "wings": 2}, "changes": []}',
            "unknown options wings",
        ),
        (
            "config.json",
            '{"format": 2, "kind": "text", "config": {"text": "x", "lr": -1}, "changes": []}',
            "lr must be greater than 0",
        ),
        ("schema.json", "{", "schema.json is damaged"),
        ("schema.json", "[" * 100_000, "schema.json is damaged"),
        ("config.json", '{"a":' * 100_000, "config.json is damaged"),
        (
            "schema.json",
            '{"format": 2, "data_sha256": "", '
            '"schema": {"vocabulary": {"kind": "bytes", "characters": "", "words": []}}}',
            "it does not fit config.json",
        ),
    ],
)
def test_a_directory_that_is_no_run_says_what_is_wrong(run: Path, name: str, content: str | None, says: str) -> None:
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    with pytest.raises(CheckpointError) as caught:
        load(run)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no run directory"):
        load(tmp_path / "no")


def test_a_damaged_log_names_its_line_and_a_line_cut_short_does_not_matter(run: Path) -> None:
    log = run / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join([*lines, '{"step": 21, "bi']))
    assert len(resume(run, steps=22).history) == 22
    log.write_text("".join([*lines[:4], "?\n", *lines[5:]]))
    with pytest.raises(CheckpointError, match=r"line 5 of \S+log.jsonl is damaged; remove that line"):
        resume(run, steps=24)
