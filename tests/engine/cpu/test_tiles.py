"""Products on AMX tiles: the kernels' source with the tiles in plain C++, which any machine with AVX2 runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import throughtime
from throughtime.engine.cpu import library
from throughtime.errors import BackendError

from .builds import SOURCES, build, need

needs_avx2 = pytest.mark.skipif(not library.runs("avx2"), reason="the build with tiles in plain C++ is for AVX2")


@needs_avx2
def test_products_of_every_size(tmp_path):
    # Whole numbers: one right result. What stands beyond rows and words is NaN; what stands beyond C must stay.
    (compiler,) = need("g++")
    program = tmp_path / "selftest"
    flags = "-std=c++17 -O1 -mavx2 -mfma -Wall -Wextra -Wno-psabi -DTT_EMULATE_TILES -DTT_ISA=selftest -DTT_BYTES=64"
    source = Path(__file__).with_name("products_selftest.cpp")
    command = [compiler, *flags.split(), f"-I{SOURCES / 'src'}", source, SOURCES / "src/scratch.cpp", "-o", program]
    subprocess.run(command, check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0 and " 0 wrong numbers" in done.stdout, done.stdout
    # The tiles in plain C++ refuse what the processor refuses.
    without = subprocess.run([program, "unshaped"], capture_output=True, text=True)
    assert without.returncode != 0 and "no shapes are loaded" in without.stderr


@pytest.mark.slow
@needs_avx2
@pytest.mark.parametrize("vectors", ["avx512_bf16", "avx2"])
def test_every_test_of_this_folder_on_emulated_tiles(tmp_path, vectors):
    if not library.runs(vectors):
        pytest.skip(f"this machine does not run {vectors}")
    compiler, _ = need("g++", "cmake")
    made = build(tmp_path, f"-DCMAKE_CXX_COMPILER={compiler}", f"-DTHROUGHTIME_EMULATE_TILES={vectors}")
    environment = {**os.environ, "THROUGHTIME_CPU_LIBRARY": str(made), "OMP_NUM_THREADS": "1"}

    def run(*command: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)

    current = run("-c", "from throughtime.engine.cpu import library; print(library.current())")
    assert current.stdout.strip() == "amx_bf16", current.stderr
    done = run("-m", "pytest", "-m", "not slow", "-p", "no:cacheprovider", str(Path(__file__).parent))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


class WithoutTiles:
    """The library as it stands where tiles were found and could not be used."""

    def __init__(self, lib, why: int):
        self.lib, self.why = lib, why

    def __getattr__(self, name):
        return getattr(self.lib, name)

    def tt_tiles(self):
        return self.why

    def tt_runs(self, isa):
        return isa != library.ISAS.index("amx_bf16") and self.lib.tt_runs(isa)


@pytest.mark.parametrize(
    ("why", "words"), [(2, None), (3, "the operating system refuses"), (4, "came out wrong")]
)  # fmt: skip
def test_tiles_left_out_are_told(monkeypatch, why, words):
    fake = WithoutTiles(library.load(), why)
    monkeypatch.setattr(library, "load", lambda: fake)
    layer = throughtime.nn.LSTM(4, 4)
    plain = throughtime.explain(layer)
    with torch.autocast("cpu", torch.bfloat16):
        low = throughtime.explain(layer)
    assert "tiles" not in plain
    if words is None:  # a processor that never had any lacks nothing
        assert "tiles" not in low
    else:
        assert "not on AMX tiles: " in low and words in low
    with pytest.raises(BackendError, match=r"does not run amx_bf16: .*its widest is"):
        library.choose("amx_bf16")
