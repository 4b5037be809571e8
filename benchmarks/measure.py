"""What the benchmarks share: interleaved rounds, the machine in one line, tables."""

from __future__ import annotations

import math
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import torch

import throughtime

Run = Callable[[], object]


def medians(
    runs: dict[str, Run],
    rounds: int,
    least: float,
    clock: Callable[[], float] = time.perf_counter,
    most: float = math.inf,
) -> dict[str, float]:
    """Seconds a run: in each round every contender runs for at least `least` seconds, in a new order.

    Interleaved, because a machine's speed drifts by more than what is to be told apart. clock: in seconds; with
    `time.process_time`, what other processes do to the machine counts for less. most: seconds that the rounds should
    not take in all; there are three in any case.
    """
    repeats, a_round = {}, 0.0
    for key, run in runs.items():
        run()
        start = clock()
        run()
        once = max(clock() - start, 1e-7)
        repeats[key] = max(1, round(least / once))
        a_round += repeats[key] * once
    rounds = min(rounds, max(3, int(min(most / a_round, 1e6))))
    times: dict[str, list[float]] = {key: [] for key in runs}
    order = list(runs)
    for _ in range(rounds):
        random.shuffle(order)
        for key in order:
            start = clock()
            for _ in range(repeats[key]):
                runs[key]()
            times[key].append((clock() - start) / repeats[key])
    return {key: statistics.median(v) for key, v in times.items()}


def hold_to(threads: int) -> None:
    """This many threads for torch, and as many processors for every contender, those with a pool of their own too."""
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        mine = sorted(os.sched_getaffinity(0))
        if threads < len(mine):
            os.sched_setaffinity(0, mine[:threads])


def machine() -> str:
    """The processor and how many of it this process may use."""
    try:
        with open("/proc/cpuinfo") as f:
            model = next(line.split(":", 1)[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{model}, {os.cpu_count()} cores{load}"


def versions() -> str:
    """What runs: throughtime, torch, JAX where it is installed, Python."""
    found = [f"throughtime {throughtime.__version__}", f"torch {torch.__version__}"]
    try:
        import jax

        found.append(f"JAX {jax.__version__}")
    except ImportError:
        found.append("no JAX")
    return ", ".join([*found, f"Python {platform.python_version()}"])


def heading(title: str, columns: Sequence[str]) -> None:
    print(f"\n### {title}\n\n| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|", flush=True)


def row(values: Iterable[object]) -> None:
    print("| " + " | ".join(map(str, values)) + " |", flush=True)


def times(found: dict[str, float], who: str, base: str) -> str:
    """How many times longer `who` takes than `base`."""
    return f"{found[who] / found[base]:.2f}" if who in found else "-"
