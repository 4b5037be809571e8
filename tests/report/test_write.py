"""A page is on disk whole or not at all."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from throughtime.errors import ReportError, ShapeError, ThroughtimeError
from throughtime.report import Page, render, write


def test_write_returns_the_path_and_leaves_one_file(page: Page, tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    assert write(page, target) == target
    assert write(page, str(target)) == target
    assert target.read_bytes() == render(page).encode("utf-8")
    assert os.listdir(tmp_path) == ["report.html"]


def test_a_new_file_has_the_rights_of_any_other(page: Page, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    mode = write(page, tmp_path / "report.html").stat().st_mode
    assert mode == (tmp_path / "other").stat().st_mode


def test_a_missing_folder_and_a_folder_as_target(page: Page, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="no folder"):
        write(page, tmp_path / "nowhere" / "report.html")
    with pytest.raises(ReportError, match="it is a folder"):
        write(page, tmp_path)
    assert issubclass(ReportError, ThroughtimeError) and not os.listdir(tmp_path)


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_page(
    step: str, error: BaseException, page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(os, step, fail)
    expected = ReportError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="No space left" if expected is ReportError else None):
        write(page, target)
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["report.html"]


def test_a_folder_without_rights(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(ReportError, match=r"cannot write .*report\.html: Permission denied; name a folder"):
        write(page, tmp_path / "report.html")


def test_bad_data_touches_no_file(page: Page, model: Any, tmp_path: Path) -> None:
    future = model(maps={"h": [[1.0, 0.5], [0.0, 1.0]]})
    with pytest.raises(ShapeError, match="transpose"):
        write(dataclasses.replace(page, models=[future]), tmp_path / "report.html")
    assert not os.listdir(tmp_path)
