"""What the benchmarks that train share: runs over seeds side by side, one thread each, and how often they succeeded."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def options(about: str | None) -> argparse.ArgumentParser:
    """The options that all of them have."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few minutes: fewer lengths, seeds and steps")
    parser.add_argument("--seeds", type=int, help="runs of each row and column")
    parser.add_argument("--steps", type=int, help="most steps of a run")
    parser.add_argument("--workers", type=int, default=cores(), help="runs side by side, one thread each")
    return parser


def side_by_side(run: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], workers: int) -> Iterator[Any]:
    """run(*job) of each job in processes of their own, in the order of the jobs."""
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for future in [pool.submit(run, *job) for job in jobs]:
            yield future.result()


def solved(steps: Sequence[int | None]) -> str:
    """How many of the runs solved their task, and the median number of steps that those took."""
    done = sorted(s for s in steps if s is not None)
    told = f"{len(done)} of {len(steps)}"
    return f"{told} ({done[len(done) // 2]} steps)" if done else told
