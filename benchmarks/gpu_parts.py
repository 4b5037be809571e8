"""What the sections of the GPU benchmark share: the report, the clock, the chip's limits, layers and their peers."""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from benchmarks.cpu_contenders import CELLS, PEERS
from benchmarks.measure import Run

from throughtime import nn
from throughtime.engine.operator import tape_of
from throughtime.engine.trace import program
from throughtime.engine.triton import saved_width

Shape = tuple[int, int, int]
Section = Callable[["Report", argparse.Namespace], None]
# Parameters and how float32 products are rounded: as they are, or to tf32, on both sides.
DTYPES = {"bf16": (torch.bfloat16, False), "float32": (torch.float32, False), "tf32": (torch.float32, True)}
# How far results may be from the peer's: both round, each in its own order, and a recurrence carries it on.
TOLERANCE = {"bf16": 6e-2, "float32": 2e-4, "tf32": 2e-2}


class Report:
    """What is printed, line by line as it comes; red: how many checks have failed."""

    def __init__(self) -> None:
        self.red = 0

    def say(self, text: str = "") -> None:
        print(text, flush=True)

    def heading(self, title: str, columns: Sequence[str]) -> None:
        self.say(f"\n### {title}\n\n| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")

    def row(self, values: Iterable[object]) -> None:
        self.say("| " + " | ".join(map(str, values)) + " |")

    @contextmanager
    def told(self, *label: object) -> Iterator[None]:
        """What fails within it is a red row of its own, and the rest goes on."""
        try:
            yield
        except Exception as err:
            self.red += 1
            first = (str(err).strip().splitlines() or [""])[0]
            self.row([*label, f"FAILED: {type(err).__name__}: {first}"])

    def check(self, what: str, ok: bool, said: str = "") -> None:
        self.red += not ok
        self.row([what, "yes" if ok else "NO", said])


@contextmanager
def rounded(tf32: bool) -> Iterator[None]:
    """Float32 products as they are or in tf32, ours and cuDNN's, which torch lets have tf32 unless told otherwise."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32
    as_it_is = {name: getattr(cudnn, name) for name in ("enabled", "benchmark", "deterministic")}
    matmul.allow_tf32 = tf32
    try:
        with cudnn.flags(**as_it_is, allow_tf32=tf32):  # which works where torch's tests have frozen the flags, too
            yield
    finally:
        matmul.allow_tf32 = before


def medians(runs: dict[str, Run], rounds: int, device: str) -> dict[str, float]:
    """Seconds a run, each contender once a round."""
    took: dict[str, list[float]] = {key: [] for key in runs}
    for run in runs.values():
        run()
    order = list(runs)
    for _ in range(rounds):
        random.shuffle(order)
        for key in order:
            took[key].append(_seconds(runs[key], device))
    return {key: statistics.median(v) for key, v in took.items()}


def _seconds(run: Run, device: str) -> float:
    if device != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def limits(dtype: torch.dtype, device: str) -> tuple[float, float]:
    """Operations a second of a large product in a dtype, bytes a second of a large copy."""
    n = 8192 if device == "cuda" else 256
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    big = torch.empty((1 << 28) if device == "cuda" else 1 << 16, dtype=torch.uint8, device=device)
    other = torch.empty_like(big)
    found = medians({"product": lambda: a @ b, "copy": lambda: other.copy_(big)}, 5, device)
    return 2.0 * n**3 / found["product"], 2.0 * big.numel() / found["copy"]


def work(name: str, shape: Shape, training: bool, size: int) -> tuple[float, float]:
    """Operations of the products, and bytes that must pass through main memory: the input and its products, the states,
    what is kept between the passes, the gradients, the weights once a pass. Products of the input are never 16 bits."""
    T, B, H = shape
    cell = CELLS[name]()
    G, R, S = len(cell.gates), len(cell.recurrent_gates), len(cell.states)
    tape = tape_of(program(cell), None, False)
    kept = saved_width(tape, H, H, [(H, H)] * len(tape.names("m"))) // H
    rows, weights = T * B * H * size, (G + R) * H * H * size
    forward_bytes = rows * (1 + S + (kept if training else 0)) + 2 * G * T * B * H * max(size, 4) + weights
    # Back: the gradient of h, states and what was kept; the gradient of z, written and read; x and its gradient.
    bytes_moved = forward_bytes + training * (rows * (1 + 2 * S + kept + 4 * G + 2) + 2 * weights)
    return 2.0 * T * B * H * H * (G + R) * (3 if training else 1), float(bytes_moved)


def layer_and_peer(name: str, H: int, dtype: torch.dtype, device: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    ours = nn.Recurrent(CELLS[name](), H, H, backend="triton", device=device, dtype=dtype)
    theirs = PEERS[name](H, H, device=device, dtype=dtype)
    with torch.no_grad():
        for p, q in zip(theirs.parameters(), ours.parameters(), strict=True):
            p.copy_(q)
    return ours, theirs


def passes(
    layer: torch.nn.Module, x: torch.Tensor, weight: torch.Tensor
) -> tuple[Run, Callable[[], list[torch.Tensor]]]:
    """The forward pass without gradients, and a training step, which gives back output and gradients."""
    leaves = [x, *layer.parameters()]

    def output() -> torch.Tensor:
        out = layer(x)
        return out[0] if isinstance(out, tuple) else out

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return output()

    def both() -> list[torch.Tensor]:
        y = output()
        return [y.detach(), *torch.autograd.grad((y * weight).sum(), leaves)]

    return forward, both


def furthest(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> float:
    """The largest difference, as a share of the largest number of the tensor it is in."""
    return max(
        float((a.double() - b.double()).detach().abs().max() / b.detach().double().abs().max().clamp(min=1e-30))
        for a, b in zip(ours, theirs, strict=True)
    )
