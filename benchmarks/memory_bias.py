"""The copy and the adding task: chrono initialisation against the usual forget-gate biases, over seeds.

    python -m benchmarks.memory_bias --quick
    python -m benchmarks.memory_bias --task copy --lag 500 --seeds 5 --steps 20000

An LSTM of 128 units (64 with --quick), Adam with a learning rate of 0.001, gradients clipped at norm 1, batches of 50
drawn anew. Shown is the loss over the last tenth of the steps as a share of the least loss without memory (for copy
10 ln 8 / (T + 20) nats a step, for adding a mean squared error of 1/6): the mean over seeds, the least and the largest;
and the median step at which the mean over 20 steps first went below half of that loss. "torch": as torch draws it, a
bias of about 0. "1": the sum of both biases 1 (Jozefowicz 2015). "chrono": ln U(1, T - 1), T the task's longest lag.

Published (Tallec & Ollivier 2018): on copy with lags of 500 and 2000 an LSTM with the usual biases stays near the loss
without memory, and with chrono initialisation the loss falls; on adding it learns sooner with chrono.
"""

from __future__ import annotations

import time

import torch
from benchmarks.measure import heading, machine, row, versions
from benchmarks.trials import options, side_by_side
from torch import nn

from throughtime import cures
from throughtime import nn as ttnn
from throughtime.train.tasks import Adding, Copy, Task

BIASES = ("torch", "1", "chrono")
BATCH, RATE = 50, 1e-3


def task_of(name: str, lag: int) -> Task:
    return Copy(lag) if name == "copy" else Adding(lag)


def run(name: str, lag: int, bias: str, units: int, seed: int, steps: int) -> tuple[list[float], float]:
    """The loss of every step as a share of that without memory, and the milliseconds a step took."""
    torch.manual_seed(seed)
    task, drawn = task_of(name, lag), torch.Generator().manual_seed(seed)
    rnn, head = ttnn.LSTM(task.inputs, units), nn.Linear(units, task.outputs)
    if bias == "1":
        cures.forget_gate_bias_(rnn, 1.0)
    elif bias == "chrono":
        longest = task.lags[1]
        assert longest is not None
        cures.chrono_(rnn, longest)
    parameters = [*rnn.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=RATE)
    clip = cures.ClipNorm(1.0, keep=1)
    losses = []
    began = time.perf_counter()
    for _ in range(steps):
        sample = task.sample(BATCH, drawn)
        optimizer.zero_grad()
        loss = task.loss(head(rnn(sample.inputs)[0]), sample)
        loss.backward()
        clip(parameters)
        optimizer.step()
        losses.append(loss.item() / task.baseline)
    return losses, 1e3 * (time.perf_counter() - began) / steps


def end(losses: list[float]) -> float:
    """The mean loss over the last tenth of the steps."""
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)


def halved(losses: list[float]) -> int | None:
    """The first step at which the mean over 20 steps is below one half."""
    return next((n for n in range(20, len(losses) + 1) if sum(losses[n - 20 : n]) < 10), None)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--task", choices=("copy", "adding"), action="append")
    parser.add_argument("--units", type=int)
    parser.add_argument("--lag", type=int, help="steps; for copy the pause")
    args = parser.parse_args()
    usual = {"copy": 50, "adding": 60} if args.quick else {"copy": 500, "adding": 200}
    wanted = {name: args.lag or usual[name] for name in args.task or usual}
    seeds, steps = args.seeds or (2 if args.quick else 5), args.steps or (2000 if args.quick else 10_000)
    units = args.units or (64 if args.quick else 128)
    print(f"{machine()}\n{versions()}\n{seeds} seeds, {steps} steps, {units} units")
    jobs = [(n, lag, bias, units, seed, steps) for n, lag in wanted.items() for bias in BIASES for seed in range(seeds)]
    found = dict(zip(jobs, side_by_side(run, jobs, args.workers), strict=True))
    for name, lag in wanted.items():
        columns = ["bias", "loss / loss without memory", "least", "largest", "halved at step", "ms a step"]
        heading(f"{name}, {lag} steps", columns)
        for bias in BIASES:
            here = [found[name, lag, bias, units, seed, steps] for seed in range(seeds)]
            ends = [end(losses) for losses, _ in here]
            at = sorted(h for losses, _ in here if (h := halved(losses)) is not None)
            told = f"{at[len(at) // 2]} ({len(at)} of {seeds})" if at else f"never (0 of {seeds})"
            numbers = [f"{v:.3f}" for v in (sum(ends) / seeds, min(ends), max(ends))]
            row([bias, *numbers, told, f"{sum(ms for _, ms in here) / seeds:.1f}"])


if __name__ == "__main__":
    main()
