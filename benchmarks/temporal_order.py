"""The temporal order task (Pascanu 2013): plain SGD, with clipping, and with clipping and Omega, by length, over seeds.

    python -m benchmarks.temporal_order --quick
    python -m benchmarks.temporal_order --length 20 --length 50 --length 100 --seeds 5 --steps 20000

A simple network (tanh, 50 units, U sparse with spectral radius 0.95, as the paper's "smart tanh") names the order of
two symbols in a sequence of the length given, by batches of 20 drawn anew for each step. A run has solved it when 99 %
of 1000 fresh sequences are right, looked at every 100 steps. "clip": ClipNorm(1). "clip + Omega": and the penalty
2 Omega / T, the paper's derivative (errors and states held constant). The learning rate is the same for all, 0.05.

Published: "sgd" and "clip" solve no length above 20; "clip + Omega" solves every length up to 200. The budget of steps
is far smaller here: what is not solved was not solved within it, which alone says nothing of a larger one.
"""

from __future__ import annotations

import time

import torch
from benchmarks.measure import heading, machine, row, versions
from benchmarks.trials import options, side_by_side, solved
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from throughtime import cures
from throughtime import nn as ttnn
from throughtime.train.tasks import TemporalOrder

HOW = ("sgd", "clip", "clip + Omega")
PUBLISHED = {"sgd": "none above 20", "clip": "none above 20", "clip + Omega": "all up to 200"}
UNITS, SPARSE, BATCH, RATE, WEIGHT, EVERY = 50, 15, 20, 0.05, 2.0, 100


class Order(nn.Module):
    """The network and its label from the last step."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.rnn, self.head = ttnn.RNN(inputs, UNITS), nn.Linear(UNITS, classes)
        with torch.no_grad():
            for p in self.parameters():
                p.normal_(0, 0.01) if p.dim() > 1 else p.zero_()
            for weights in self.rnn.weight_hh_l0:
                weights[torch.randperm(UNITS)[SPARSE:]] = 0
        cures.spectral_radius_(self.rnn, 0.95)

    def label(self, y: Tensor) -> Tensor:
        return self.head(y[-1])


def run(length: int, how: str, seed: int, steps: int) -> tuple[int | None, float]:
    """The step at which it was solved, or None; and the milliseconds a step took."""
    torch.manual_seed(seed)
    task, drawn = TemporalOrder(length), torch.Generator().manual_seed(seed)
    model = Order(task.inputs, task.outputs)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    clip = cures.ClipNorm(1.0, nonfinite="skip", keep=1)
    fresh = task.sample(1000, torch.Generator().manual_seed(10_000 + seed))
    began = time.perf_counter()
    for step in range(1, steps + 1):
        sample = task.sample(BATCH, drawn)
        optimizer.zero_grad()
        y, _ = model.rnn(sample.inputs)
        loss = cross_entropy(model.label(y), sample.targets[-1])
        if how == "clip + Omega":
            (g,) = torch.autograd.grad(loss, y, retain_graph=True)
            loss = loss + WEIGHT / length * cures.omega(model.rnn, sample.inputs, g, exact=False, floor=1e-10)
        loss.backward()
        if how != "sgd":
            clip(model)
        optimizer.step()
        if not bool(loss.isfinite()):
            break
        if step % EVERY == 0:
            with torch.no_grad():
                right = model.label(model.rnn(fresh.inputs)[0]).argmax(-1) == fresh.targets[-1]
            if right.float().mean() >= 0.99:
                return step, 1e3 * (time.perf_counter() - began) / step
    return None, 1e3 * (time.perf_counter() - began) / step


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--length", type=int, action="append", help="may be given several times")
    args = parser.parse_args()
    lengths = args.length or ([20, 50] if args.quick else [10, 20, 50, 100, 150, 200])
    seeds, steps = args.seeds or (2 if args.quick else 5), args.steps or (6000 if args.quick else 20_000)
    print(f"{machine()}\n{versions()}\n{seeds} seeds, at most {steps} steps")
    jobs = [(length, how, seed, steps) for how in HOW for length in lengths for seed in range(seeds)]
    found = dict(zip(jobs, side_by_side(run, jobs, args.workers), strict=True))
    heading("Temporal order: runs that solved it", ["", *(f"T = {n}" for n in lengths), "ms a step", "published"])
    for how in HOW:
        here = [[found[length, how, seed, steps] for seed in range(seeds)] for length in lengths]
        took = [ms for runs in here for _, ms in runs]
        cells = [solved([at for at, _ in runs]) for runs in here]
        row([how, *cells, f"{sum(took) / len(took):.1f}", PUBLISHED[how]])


if __name__ == "__main__":
    main()
