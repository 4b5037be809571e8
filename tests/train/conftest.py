"""Shared by the trainer's tests: a small text that can be learned, and a config of a tiny model."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from throughtime.train.kinds import LMConfig


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    words = random.Random(0).choices(["the cat ", "sat on ", "a m\u00e4t.\n"], k=120)
    path = tmp_path / "cats.txt"
    path.write_bytes("".join(words).encode())
    return path


@pytest.fixture
def tiny(text_file: Path) -> Callable[..., LMConfig]:
    def make(**changes: object) -> LMConfig:
        options: dict[str, object] = {
            "text": str(text_file), "embedding": 6, "hidden": 8, "window": 8, "batch": 4, "steps": 30,
            "lr": 0.01, "valid_every": 10, "checkpoint_every": 10, "threads": 1,
        }  # fmt: skip
        return LMConfig(**{**options, **changes})  # type: ignore[arg-type]

    return make
