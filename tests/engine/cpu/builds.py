"""Other builds of the kernels for the tests."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import throughtime.engine.cpu

SOURCES = Path(throughtime.engine.cpu.__file__).parent


def need(*programs: str) -> list[str]:
    missing = [p for p in programs if shutil.which(p) is None]
    if missing:
        pytest.skip(f"this build needs {', '.join(missing)} on the path")
    return [str(shutil.which(p)) for p in programs]


def build(where: Path, *options: str) -> Path:
    subprocess.run(["cmake", "-S", SOURCES, "-B", where, *options], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", where], check=True, capture_output=True)
    return where / "libthroughtime_cpu.so"
