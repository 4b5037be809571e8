"""Does noise on the inputs of training keep a model on its feet that reads its own output? Open against closed loop.

    python benchmarks/drift.py series
    python benchmarks/drift.py text FILE

Trains the same small model with several amounts of noise, several seeds each, and measures the drift of each run behind
its training: `throughtime drift`. One JSON line a run: the validation loss, and closed - open in the last bin of each
statistic. Then a table, mean and standard error over the seeds: of the loss, and of the size of the differences.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import torch

from throughtime.train import Drift, ForecastConfig, LMConfig, drift, train
from throughtime.train.config import RunConfig


def mackey_glass(n: int) -> list[float]:
    """Mackey & Glass 1977, tau = 17, by Euler steps of 0.1, every 10th: chaotic, and deterministic."""
    x, out = [1.2] * 171, []
    for k in range((n + 100) * 10):
        x.append(x[-1] + 0.1 * (0.2 * x[-171] / (1 + x[-171] ** 10) - 0.1 * x[-1]))
        if k % 10 == 9:
            out.append(x[-1])
    return out[100:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=("series", "text"))
    parser.add_argument("file", nargs="?", help="the text")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.05, 0.1, 0.2])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--hidden", type=int, default=48)
    parser.add_argument("--length", type=int, default=256)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = {
            noise: [one(Path(place), options, noise, seed) for seed in range(options.seeds)] for noise in options.noise
        }
    names = list(found[options.noise[0]][0])
    print(f"{'noise':>6} " + " ".join(f"{name:>26}" for name in names))
    for noise, runs in found.items():
        print(f"{noise:6g} " + " ".join(f"{cell([size(name, run) for run in runs]):>26}" for name in names))


def one(place: Path, options: argparse.Namespace, noise: float, seed: int) -> dict[str, float]:
    """Train one model and measure it: the validation loss, and the last bin of each statistic."""
    began = time.perf_counter()
    result = train(config(place, options, noise, seed), place / f"{noise}-{seed}")
    told: Drift = drift(result.path, length=options.length, context=64, seed=seed, checkpoint="last")
    numbers = {"validation": float(result.history[-1].valid or math.nan)}
    for name, d in told.of.items():
        numbers[name] = float(d.difference[-1])
    seconds = round(time.perf_counter() - began, 1)
    print(json.dumps({"noise": noise, "seed": seed, "seconds": seconds, **numbers}), flush=True)
    return numbers


def config(place: Path, options: argparse.Namespace, noise: float, seed: int) -> RunConfig:
    same = {
        "hidden": options.hidden, "steps": options.steps, "seed": seed, "input_noise": noise, "threads": 1,
        "valid_every": options.steps, "valid_fraction": 0.4, "watch_budget": 0.0, "window": 50,
    }  # fmt: skip
    if options.kind == "text":
        return LMConfig(options.file, batch=16, embedding=24, **same)
    table = place / "mackey-glass.csv"
    if not table.exists():
        table.write_text("x\n" + "".join(f"{x:.6f}\n" for x in mackey_glass(12000)))
    return ForecastConfig(str(table), target="x", lr=5e-3, batch=16, **same)


def size(name: str, run: dict[str, float]) -> float:
    return run[name] if name == "validation" else abs(run[name])


def cell(values: list[float]) -> str:
    v = torch.tensor(values, dtype=torch.float64)
    return f"{float(v.mean()):.4f} ± {float(v.std()) / len(v) ** 0.5:.4f}" if len(v) > 1 else f"{float(v):.4f}"


if __name__ == "__main__":
    main()
