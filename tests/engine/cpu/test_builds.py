"""Other builds of the kernels: with the sanitizers, under every test of this folder, and for ARM."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from throughtime.engine.cpu import library as kernels

from .builds import build, need

CANARY = """
import ctypes
from throughtime.engine.cpu import library
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
small = libc.malloc(64)
library.load().tt_apply(0, 0, small, small, 256)
"""


@pytest.mark.slow
def test_no_access_out_of_bounds_and_nothing_undefined(tmp_path):
    compiler, _ = need("g++", "cmake")
    # Tiles in plain C++ read and write memory where the sanitizers see it.
    tiles = [f"-DTHROUGHTIME_EMULATE_TILES={v}" for v in ("avx512_bf16", "avx2") if kernels.runs(v)]
    library = build(
        tmp_path,
        f"-DCMAKE_CXX_COMPILER={compiler}",
        "-DTHROUGHTIME_SANITIZE=ON",
        "-DCMAKE_BUILD_TYPE=Debug",
        *tiles[:1],
    )
    runtimes = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own, at its end
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "THROUGHTIME_CPU_LIBRARY": str(library),
        "OMP_NUM_THREADS": "1",
    }

    def run(*command: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)

    canary = run("-c", CANARY)
    assert "heap-buffer-overflow" in canary.stderr, canary.stderr  # else the sanitizer is not at work
    folder = Path(__file__).parent
    done = run("-m", "pytest", "-m", "not slow", "-p", "no:cacheprovider", str(folder))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.mark.slow
def test_compiles_for_arm(tmp_path):
    compiler, readelf, _ = need("aarch64-linux-gnu-g++", "readelf", "cmake")
    library = build(
        tmp_path,
        f"-DCMAKE_CXX_COMPILER={compiler}",
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DCMAKE_CXX_FLAGS=-Werror",
    )
    header = subprocess.run([readelf, "-hs", library], check=True, capture_output=True, text=True).stdout
    assert "AArch64" in header and "tt_forward" in header
