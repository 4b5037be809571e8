"""Tests of throughtime.files."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from throughtime import files
from throughtime.files import WriteError, remove_leftovers, to_json, write_directory, write_file


def fail_after(monkeypatch: pytest.MonkeyPatch, name: str, calls: int) -> None:
    """Let `os.<name>` work `calls` times and then find the disk full."""
    real, left = getattr(os, name), [calls]

    def limited(*args: Any, **kwargs: Any) -> Any:
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1
        return real(*args, **kwargs)

    monkeypatch.setattr(files.os, name, limited)


def test_a_directory_appears_whole(tmp_path: Path) -> None:
    write_directory(tmp_path / "deep" / "place", {"a": b"1", "b": b"22"})
    assert {p.name: p.read_bytes() for p in (tmp_path / "deep" / "place").iterdir()} == {
        "a": b"1",
        "b": b"22",
    }
    assert os.listdir(tmp_path / "deep") == ["place"]


@pytest.mark.parametrize(("call", "good_calls"), [("fsync", 0), ("fsync", 1), ("fsync", 2), ("rename", 0)])
def test_a_directory_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, good_calls: int
) -> None:
    fail_after(monkeypatch, call, good_calls)
    with pytest.raises(WriteError, match=r"cannot write .*place: No space left on device"):
        write_directory(tmp_path / "place", {"a": b"1", "b": b"2"})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_file_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    write_file(tmp_path / "f", b"old")
    fail_after(monkeypatch, call, 0)
    with pytest.raises(WriteError, match="No space left"):
        write_file(tmp_path / "f", b"new")
    assert os.listdir(tmp_path) == ["f"] and (tmp_path / "f").read_bytes() == b"old"


def test_leftovers_of_a_kill_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".tmp-step-000020").mkdir()
    (tmp_path / ".tmp-step-000020" / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".tmp-config.json").write_bytes(b"{")
    (tmp_path / "step-000010").mkdir()
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["step-000010"]


def test_json_has_no_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"loss": float("nan")})
