"""The peak memory of one training step, measured in a process of its own (Linux).

    python -m benchmarks.cpu_memory torch lstm 10000 4 128
    python -m benchmarks.cpu_memory low lstm 10000 4 128

The first argument says who: "torch" (torch.nn's layer), "fast" or "low" (ours with that `memory`). Prints the bytes
that the step took at its peak beyond what was there before it: weights, and the input. The loss reads the last state.
"""

from __future__ import annotations

import os
import subprocess
import sys

import torch
from benchmarks.cpu_contenders import CELLS, PEERS

from throughtime import nn


def resident(key: str) -> int:
    """Bytes of main memory that this process holds (VmRSS), or held at the most (VmHWM)."""
    with open("/proc/self/status") as f:
        return 1024 * next(int(line.split()[1]) for line in f if line.startswith(key))


def peak_of_a_step(who: str, cell: str, T: int, B: int, H: int) -> int:
    layer = PEERS[cell](H, H) if who == "torch" else nn.Recurrent(CELLS[cell](), H, H, memory=who)

    def step(x: torch.Tensor) -> None:
        last = layer(x)[1]
        (last[0] if isinstance(last, tuple) else last).sum().backward()

    x = torch.randn(T, B, H)
    step(x[:50])
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")  # the peak counts from here
    before = resident("VmRSS")
    step(x)
    return resident("VmHWM") - before


def measured(who: str, cell: str, T: int, B: int, H: int, threads: int) -> int:
    """`peak_of_a_step` in a process of its own, so that memory freed before is not used again."""
    command = [sys.executable, "-m", "benchmarks.cpu_memory", who, cell, str(T), str(B), str(H)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)}
    )
    return int(done.stdout)


if __name__ == "__main__":
    print(peak_of_a_step(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])))
