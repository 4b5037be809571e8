"""Where the time of a training step goes in the CPU kernels, phase by phase and thread by thread.

    cmake -S src/throughtime/engine/cpu -B build -DTHROUGHTIME_PHASES=ON && cmake --build build
    THROUGHTIME_CPU_LIBRARY=build/libthroughtime_cpu.so python -m benchmarks.cpu_phases --shape 256,32,128 --cell lstm

The kernels of that build read the processor's clock whenever they go from one phase to another. A line is one thread
in the fastest of the steps that were run; `outside` is what is not the kernels: Python, autograd, the loss. `ideal` is
what one of the six products would take at the probed peak, on all threads; two of them are `weight_gradient`.
With --packed a batch of lengths spread over 1..T stands beside a full one of as many steps.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import time
from collections.abc import Callable

import torch
from benchmarks.cpu import SHAPES, arguments, operations, peak
from benchmarks.cpu_contenders import CELLS, training_step
from benchmarks.measure import Run, hold_to, machine, versions

from throughtime import nn
from throughtime.engine.cpu import library

# As in phases.h.
PHASES = (
    "outside", "rest", "projection", "recurrence", "step_forward", "step_backward", "state_gradient",
    "weight_gradient", "sums", "input_gradient", "waiting",
)  # fmt: skip
Ticks = list[list[int]]


def clock(threads: int) -> Callable[[], Ticks]:
    """A function that reads the ticks of each thread's phases. Ends the program where the build does not count them."""
    lib = library.load()
    if not hasattr(lib, "tt_phase"):
        raise SystemExit(
            f"{library.path()} does not count phases; build it with -DTHROUGHTIME_PHASES=ON, as said above"
        )
    lib.tt_phase.restype, lib.tt_phase.argtypes = ctypes.c_int64, [ctypes.c_int64] * 2
    return lambda: [[lib.tt_phase(t, p) for p in range(len(PHASES))] for t in range(threads)]


def fastest(run: Run, read: Callable[[], Ticks], seconds: float) -> tuple[float, list[list[float]]]:
    """Seconds of the fastest step, and of each of its phases by thread."""
    run()
    best, end = (float("inf"), [[0.0]]), time.perf_counter() + seconds
    while time.perf_counter() < end or best[0] == float("inf"):
        before, start = read(), time.perf_counter()
        run()
        took, after = time.perf_counter() - start, read()
        if took < best[0]:
            ticks = [[b - a for a, b in zip(*two, strict=True)] for two in zip(before, after, strict=True)]
            rate = max(1, sum(ticks[0])) / took  # the first thread is always in some phase
            best = took, [[n / rate for n in line] for line in ticks]
    return best


def show(what: str, took: float, lines: list[list[float]], note: str) -> None:
    print(f"\n{what}: {took * 1e3:.3f} ms; {note}")
    for line in lines:
        print("    " + " ".join(f"{n} {s * 1e3:.3f}" for n, s in zip(PHASES, line, strict=True) if s > 5e-7))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_phases", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--packed", action="store_true", help="sequences of several lengths, and a full batch")
    parser.add_argument("--bf16", action="store_true", help="under autocast to bf16")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each is run")
    own, rest = parser.parse_known_args()
    args = arguments(rest)
    torch.manual_seed(0)
    hold_to(args.threads)
    os.environ["THROUGHTIME_BACKEND"] = "cpu"
    read = clock(args.threads)
    print(f"{machine()}; {args.threads} threads; {library.current()}\n{versions()}")
    for T, B, H in args.shapes if args.shapes != SHAPES else SHAPES[:5]:
        for name in args.cell or ["lstm"]:
            layer, x = nn.Recurrent(CELLS[name](), H, H), torch.randn(T, B, H)
            runs = {}
            if own.packed:
                lengths = torch.linspace(T, 1, B).round().long()
                some = torch.nn.utils.rnn.pack_padded_sequence(x, lengths)
                runs["packed"] = training_step(layer, some._replace(data=some.data.requires_grad_()), low=own.bf16)
                x = x[: round(int(lengths.sum()) / B)]
            runs["full"] = training_step(layer, x.detach().requires_grad_(), low=own.bf16)
            for what, run in runs.items():
                took, lines = fastest(run, read, own.seconds)
                rate = max(peak(args.threads) for _ in range(3))
                ops = operations(name, x.shape[0], B, H)
                ideal = ops / rate / 6 * 1e3
                note = f"{ops / took / rate:.0%} of {rate / 1e9:.0f} GFLOP/s; ideal {ideal:.3f} ms a product"
                show(f"{name} {T},{B},{H} {what}", took, lines, note)


if __name__ == "__main__":
    main()
