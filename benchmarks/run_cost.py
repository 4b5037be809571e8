"""What the guard costs inside a run of `throughtime train`: steps with it and without it, by turns.

    python -m benchmarks.run_cost
    python -m benchmarks.run_cost --hidden 512 --layers 2 --rounds 40

A row is one language model on a generated text of 60 letters and signs. Two runs of it train side by side, the one
guarded and the other not (neither watched: the watch keeps a budget, see benchmarks/watch_cost.py). Each round they do
some steps each, in a new order; times are processor times of this process, since others share the machine. "more" is
the median of the rounds' ratios, with its quartiles: two equal contenders differ by several per cent, as the column
"none twice" shows, where a third run is as the first.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from benchmarks.measure import hold_to, machine

import throughtime as tt
from throughtime.train import LMConfig
from throughtime.train.data.prepare import prepare
from throughtime.train.rundir import Run
from throughtime.train.session import Session, private_torch
from throughtime.train.steps import Callbacks, Loop

SHAPES = [(24, 2, 32, 1), (64, 32, 128, 1), (128, 32, 256, 2)]
HEAD = f"{'T, B, H, layers':<20}{'none':>9}{'guarded':>9}{'more':>10}{'quartiles':>20}{'none twice':>22}"


@dataclass
class Row:
    """Seconds a step of one model, by contender and round."""

    name: str
    times: dict[str, list[float]]

    def __str__(self) -> str:
        none, guarded = (1e3 * statistics.median(self.times[k]) for k in ("none", "guarded"))
        low, middle, high = self._more("guarded")
        lower, _, higher = self._more("again")
        return (
            f"{self.name:<20}{none:9.3f}{guarded:9.3f}{middle:+8.1f} %{f'{low:+.1f} to {high:+.1f} %':>20}"
            f"{f'{lower:+.1f} to {higher:+.1f} %':>22}"
        )

    def _more(self, name: str) -> list[float]:
        pairs = zip(self.times["none"], self.times[name], strict=True)
        return statistics.quantiles([100 * (b / a - 1) for a, b in pairs], n=4)


def measure(shape: tuple[int, ...], place: Path, rounds: int, steps: int, threads: int) -> Row:
    """Times one model."""
    T, B, H, L = shape
    config = LMConfig(
        str(place / "text.txt"), window=T, batch=B, hidden=H, layers=L, steps=10**6, valid_fraction=0.0,
        checkpoint_every=10**6, watch_budget=0.0, threads=threads,
    )  # fmt: skip
    name = f"{T}, {B}, {H}, {L}"
    with private_torch(config):
        guarded = {"none": False, "guarded": True, "again": False}
        loops = {k: _loop(replace(config, guard=on), place / f"{name} {k}") for k, on in guarded.items()}
        times: dict[str, list[float]] = {k: [] for k in loops}
        order, draw = list(loops), random.Random(0)
        for i in range(rounds + 1):
            draw.shuffle(order)
            for k in order:
                began = time.process_time()
                for _ in range(steps):
                    loops[k]._step()
                if i:  # the first round warms up
                    times[k].append((time.process_time() - began) / steps)
        for loop in loops.values():
            loop.guard.close()
            loop.log.close()
    return Row(name, times)


def _loop(config: LMConfig, path: Path) -> Loop:
    data = prepare(config)
    session = Session(config, data.schema)
    run = Run.create(path, config, data)
    session.save(run.checkpoints)
    loop = Loop(run, data, session, None, Callbacks())
    loop._begin()
    return loop


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--hidden", type=int, help="one model of this size, in place of the three")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=5, help="in each round")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    hold_to(options.threads)
    print(f"throughtime {tt.__version__}, torch {torch.__version__}, {machine()}, {options.threads} thread(s)")
    print(f"{options.rounds} rounds of {options.steps} steps; processor times in ms a step\n\n{HEAD}")
    one = (options.window, options.batch, options.hidden, options.layers)
    with tempfile.TemporaryDirectory() as folder:
        signs = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,;:!?\n"
        (Path(folder) / "text.txt").write_text("".join(random.Random(0).choices(signs, k=400_000)))
        for shape in [one] if options.hidden else SHAPES:
            print(measure(shape, Path(folder), options.rounds, options.steps, options.threads), flush=True)


if __name__ == "__main__":
    main()
