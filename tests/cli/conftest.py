"""Shared by the tests of the command line: a small text, and the options of a tiny model."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

OPTIONS = "--embedding 6 --hidden 8 --window 8 --batch 4 --steps 20 --valid-every 10 --threads 1"


@pytest.fixture
def options() -> list[str]:
    return OPTIONS.split()


@pytest.fixture
def text_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "cats.txt"
    path.write_text("".join(random.Random(0).choices(["the cat ", "sat on ", "a mat.\n"], k=120)))
    return path
