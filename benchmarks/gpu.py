"""The Triton kernels on an NVIDIA GPU: checked, then timed against cuDNN, a compiled loop, and torch's walk.

    python -m benchmarks.gpu --out docs/gpu-results.md
    python -m benchmarks.gpu --quick
    python -m benchmarks.gpu --rehearse     (without a GPU: tiny sizes, interpreted, to see that the script is whole)

One run does everything within --minutes: it compiles the kernels on all cores, and then goes through its sections, the
most important first. Each section is a process of its own: what goes wrong in one is told, and the rest goes on. What
is found is written to --out line by line as it comes. A row whose results differ from the peer's shows no time, and
the exit status is 1. Times are medians over rounds in which every contender runs once, in a new order, between two
CUDA events; "us a step" is the time of a pass over T. The limits are measured in the same run: operations a second of
one large product, bytes a second of one large copy.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from benchmarks import gpu_checks, gpu_sections
from benchmarks.cpu_contenders import PEERS
from benchmarks.gpu_parts import Report, Section
from benchmarks.measure import versions

TS, BS, HS = (128, 1024), (1, 16, 128), (64, 128, 256, 512, 768, 1024)
QUICK = [(128, 1, 128), (128, 16, 256), (128, 16, 768)]
TINY = [(3, 2, 17)]

SECTIONS: dict[str, Section] = {
    "every-cell": gpu_checks.every_cell,
    "lstm": gpu_sections.against_cudnn("lstm"),
    "gru": gpu_sections.against_cudnn("gru"),
    "rnn": gpu_sections.against_cudnn("rnn"),
    "graphs": gpu_checks.captured,
    "map": gpu_sections.map_of_gradients,
    "cells": gpu_sections.any_cell,
    "errors": gpu_sections.error_growth,
    "tests": gpu_checks.tests,
    "loop": gpu_sections.compiled_loop,
}


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    assert __doc__
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="three sizes instead of all")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes by the interpreter; times mean nothing")
    parser.add_argument("--out", type=Path, help="append the tables here too as they come, as Markdown")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--minutes", type=float, default=9.0, help="no section begins, and none goes on, after that")
    parser.add_argument("--only", action="append", choices=list(SECTIONS), help="may be repeated; all without it")
    parser.add_argument("--here", choices=list(SECTIONS), help="one section in this process, nothing beside it")
    parser.add_argument("--warm", help="i/n: only compile part i of n of what --here would time")
    args = parser.parse_args(given)
    if args.rounds < 1:
        parser.error(f"--rounds must be at least 1; came {args.rounds}")
    if not args.minutes > 0:
        parser.error(f"--minutes must be more than 0; came {args.minutes}")
    args.device, args.seconds = "cpu" if args.rehearse else "cuda", args.minutes * 60
    args.shapes = TINY if args.rehearse else QUICK if args.quick else [(T, B, H) for T in TS for B in BS for H in HS]
    if args.warm:  # two steps compile what a thousand need
        part, parts = map(int, args.warm.split("/"))
        args.shapes = list(dict.fromkeys((2, B, H) for _, B, H in args.shapes))[part::parts]
    if args.rehearse:
        args.rounds = 1
        os.environ["TRITON_INTERPRET"] = "1"
    return args


def here(args: argparse.Namespace) -> int:
    """One section, in this process."""
    random.seed(0)
    torch.manual_seed(0)
    report = Report()
    SECTIONS[args.here](report, args)
    return 1 if report.red else 0


def command(name: str, args: argparse.Namespace, left: float, warm: str | None = None) -> list[str]:
    """The command of one section."""
    how = [f"--minutes={max(left, 1.0) / 60}", f"--rounds={args.rounds}"]
    how += ["--quick"] * args.quick + ["--rehearse"] * args.rehearse + ([f"--warm={warm}"] if warm else [])
    return [sys.executable, "-m", "benchmarks.gpu", f"--here={name}", *how]


def compile_all(names: Sequence[str], args: argparse.Namespace, left: float) -> str:
    """Compiles the kernels of the timed sections on all cores; what fails here is told by its own section later."""
    parts = 1 if args.rehearse else max(1, (os.cpu_count() or 1) // 3)
    start, mine = time.perf_counter(), [n for n in names if n in PEERS]
    running = [subprocess.Popen(command(name, args, left, f"{k}/{parts}"), stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL) for name in mine for k in range(parts)]  # fmt: skip
    for process in running:
        try:
            process.wait(max(1.0, left - (time.perf_counter() - start)))
        except subprocess.TimeoutExpired:
            process.kill()
    return f"{len(running)} processes compiled for {time.perf_counter() - start:.0f} s"


def main(given: Sequence[str] | None = None) -> int:
    args = arguments(given)
    if args.device == "cuda" and not torch.cuda.is_available():
        print(
            "benchmarks.gpu times kernels on an NVIDIA GPU, and torch finds none (torch.cuda.is_available() is False). "
            "Run it on a machine that has one, with torch's build for CUDA. Without one, --rehearse tries this script, "
            "and python -m pytest tests/engine/triton checks the kernels by Triton's interpreter.",
            file=sys.stderr,
        )
        return 2
    if args.here:
        return here(args)
    begun, red = time.monotonic(), []

    def left() -> float:
        return args.seconds - (time.monotonic() - begun)

    def say(text: str) -> None:
        print(text, flush=True)
        if args.out is not None:
            with args.out.open("a", encoding="utf-8") as file:
                file.write(text + "\n")

    device = torch.cuda.get_device_name() if args.device == "cuda" else "no GPU: a rehearsal, its times mean nothing"
    say(f"{device}; {versions()}; cuDNN {torch.backends.cudnn.version()}")
    names = args.only or list(SECTIONS)
    say(f"\n{compile_all(names, args, left() / 2)}")
    for name in names:
        if left() < 5:
            say(f"\nSection {name}: left out, the {args.minutes:g} minutes are over")
            red.append(name)
            continue
        start = time.monotonic()
        process = subprocess.Popen(command(name, args, left()), stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            for line in process.stdout:
                say(line.rstrip("\n"))
                if left() < 0:
                    process.kill()
            status = process.wait(max(1.0, left()))
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        if status:
            red.append(name)
            say(f"\nSection {name}: {'something in it failed' if status == 1 else f'ended with status {status}'}")
        say(f"\n(section {name}: {time.monotonic() - start:.0f} s)")
    say(f"\n{'Red: ' + ', '.join(red) if red else 'All green'}; {args.seconds - left():.0f} s in all")
    return 1 if red else 0


if __name__ == "__main__":
    sys.exit(main())
