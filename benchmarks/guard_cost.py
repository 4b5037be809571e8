"""What the guard costs: training steps with it and without it in the same rounds, and one snapshot by itself.

    python -m benchmarks.guard_cost
    python -m benchmarks.guard_cost --shape 64,32,256,2 --cell gru --rounds 30 --device cuda

A row is one model: a recurrent layer of torch's (T steps, B sequences, H units and inputs, L layers) with a linear
head, trained by Adam. Every round runs some steps of each contender, in a new order: the loop as it is, the guard
without the flight recorder, and the guard as it comes. The times are medians over the rounds, in milliseconds a step;
the percentages are the medians of each round's ratio to the loop as it is, with the quartiles of the last one, for
on a shared machine two equal contenders differ by several per cent; on the CPU all are processor times. A snapshot is
taken again and again for its own time; "of step" is that time as a part of a step, and `every` how many steps apart the
guard puts them, so that they take a hundredth of the time at most, by the wall clock of the run.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from benchmarks.measure import hold_to, machine
from torch import Tensor, nn

import throughtime as tt
from throughtime.cures import Snapshot

SHAPES = [(100, 16, 64, 1), (50, 16, 128, 2), (10, 8, 512, 1)]
LAYERS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
CONTENDERS = ("none", "no recorder", "full")


class Model(nn.Module):
    """A recurrent layer and a linear map of its output."""

    def __init__(self, cell: str, H: int, L: int):
        super().__init__()
        self.layer, self.head = LAYERS[cell](H, H, L), nn.Linear(H, H)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0])


@dataclass
class Row:
    """The times of one model, seconds: a step by contender and round; one snapshot; its size in bytes; `every`."""

    name: str
    steps: dict[str, list[float]]
    snapshot: float
    size: int
    every: int

    def __str__(self) -> str:
        plain = self.steps["none"]
        shown = [f"{1e3 * statistics.median(self.steps[c]):9.3f}" for c in CONTENDERS]
        ratios = {c: [100 * (b / a - 1) for a, b in zip(plain, self.steps[c], strict=True)] for c in CONTENDERS[1:]}
        low, _, high = statistics.quantiles(ratios["full"], n=4)
        more = " ".join(f"{statistics.median(r):+11.1f} %" for r in ratios.values())
        step = statistics.median(plain)
        return (
            f"{self.name:<24}{' '.join(shown)} {more} {f'{low:+.1f} to {high:+.1f} %':>19}"
            f"{1e3 * self.snapshot:10.3f}{100 * self.snapshot / step:8.1f} %{self.size / 2**20:9.1f}{self.every:7}"
        )


HEAD = (
    f"{'T, B, H, layers':<24}{'plain':>9} {'no rec.':>9} {'guard':>9} {'no rec.':>13} {'guard':>13} {'quartiles':>19}"
    f"{'snapshot':>10}{'of step':>10}{'MiB':>9}{'every':>7}"
)


def measure(cell: str, shape: tuple[int, ...], rounds: int, steps: int, device: torch.device) -> Row:
    """Times one model."""
    T, B, H, L = shape
    loops = {c: _loop(c, cell, shape, device) for c in CONTENDERS}
    times: dict[str, list[float]] = {c: [] for c in CONTENDERS}
    order, draw = list(CONTENDERS), random.Random(0)
    for i in range(rounds + 1):
        draw.shuffle(order)
        for name in order:
            spent = _timed(lambda run=loops[name][0]: [run() for _ in range(steps)], device) / steps
            if i:  # the first round warms up
                times[name].append(spent)
    guard = loops["full"][1]
    assert guard is not None
    held = Snapshot(guard.parts)
    copies = [_timed(lambda: held.take(0), device) for _ in range(12)]
    kept = [v for s in guard.optimizers[0].state.values() for v in s.values() if isinstance(v, Tensor)]
    size = sum(v.numel() * v.element_size() for v in (*held.weights, *kept))
    return Row(f"{cell} {T}, {B}, {H}, {L}", times, statistics.median(copies[2:]), size, guard.every)


def _loop(
    contender: str, cell: str, shape: tuple[int, ...], device: torch.device
) -> tuple[Callable[[], None], tt.Guard | None]:
    torch.manual_seed(0)
    T, B, H, L = shape
    model = Model(cell, H, L).to(device)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    x, target = torch.randn(T, B, H, device=device), torch.randn(T, B, H, device=device)

    def plain() -> None:
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        loss.item()  # every loop looks at its loss

    if contender == "none":
        return plain, None
    guard = tt.Guard(model, optimizer, record=contender == "full")

    def guarded() -> None:
        with guard.step() as step:
            optimizer.zero_grad()
            loss = step.backward((model(x) - target).square().mean())
            optimizer.step()
        loss.item()

    return guarded, guard


def _timed(run: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        began = time.process_time()
        run()
        return time.process_time() - began
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    run()
    torch.cuda.synchronize(device)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", help="T,B,H,L")
    parser.add_argument("--cell", action="append", choices=LAYERS)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=5, help="in each round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    hold_to(options.threads)
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else machine()
    clock = "wall" if device.type == "cuda" else "processor"
    print(f"throughtime {tt.__version__}, torch {torch.__version__}, {name}, {options.threads} thread(s)")
    print(f"{options.rounds} rounds of {options.steps} steps; {clock} times in ms\n\n{HEAD}")
    shapes = [tuple(int(n) for n in s.split(",")) for s in options.shape] if options.shape else SHAPES
    for shape in shapes:
        for cell in options.cell or ["lstm"]:
            print(measure(cell, shape, options.rounds, options.steps, device), flush=True)


if __name__ == "__main__":
    main()
