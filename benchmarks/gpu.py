"""The Triton kernels on an NVIDIA GPU: checked first, then timed against cuDNN, a compiled loop, and each other.

    python -m benchmarks.gpu --out docs/gpu-results.md
    python -m benchmarks.gpu --quick
    python -m benchmarks.gpu --rehearse     (without a GPU: tiny sizes, interpreted, to see that the script is whole)

One run does everything: it compiles the kernels, runs the engine's tests on the GPU and stops where one is red, then
times. A row whose results differ from the peer's shows no time, and the exit status is 1. Times are medians over rounds
in which every contender runs once, in a new order, between two CUDA events; "us a step" is the time of a pass over T.
The limits are measured in the same run: operations a second of one large product, bytes a second of one large copy.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from benchmarks.cpu_contenders import CELLS, PEERS, Loop
from benchmarks.measure import Run, versions

from throughtime import nn
from throughtime.engine.operator import tape_of
from throughtime.engine.trace import program
from throughtime.engine.triton import saved_width

Shape = tuple[int, int, int]
TS, BS, HS = (128, 1024), (1, 16, 128), (64, 128, 256, 512, 768, 1024)
QUICK = [(128, 1, 128), (128, 16, 256), (128, 16, 768)]
TINY = [(3, 2, 17)]
DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}
# How far results may be from the peer's: both round, each in its own order, and a recurrence carries it on.
TOLERANCE = {"bf16": 6e-2, "float32": 2e-4}
GROWTH = (16, 64, 256, 1024)


class Report:
    """What is printed, and written to a file in the end."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.red = 0

    def say(self, text: str = "") -> None:
        print(text, flush=True)
        self.lines.append(text)

    def heading(self, title: str, columns: Sequence[str]) -> None:
        self.say(f"\n### {title}\n\n| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")

    def row(self, values: Iterable[object]) -> None:
        self.say("| " + " | ".join(map(str, values)) + " |")


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
    what is kept between the passes, the gradients, the weights once a pass."""
    T, B, H = shape
    cell = CELLS[name]()
    G, R, S = len(cell.gates), len(cell.recurrent_gates), len(cell.states)
    tape = tape_of(program(cell), None, False)
    kept = saved_width(tape, H, H, [(H, H)] * len(tape.names("m"))) // H
    rows, weights = T * B * H * size, (G + R) * H * H * size
    forward_bytes = rows * (1 + 2 * G + S + (kept if training else 0)) + weights
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
        float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-30))
        for a, b in zip(ours, theirs, strict=True)
    )


def against_cudnn(report: Report, args: argparse.Namespace) -> None:
    for low, dtype in DTYPES.items():
        flops, bandwidth = limits(dtype, args.device)
        report.say(f"\n{low}: {flops / 1e12:.3g} T operations/s, {bandwidth / 1e9:.4g} GB/s")
        columns = [
            "cell",
            "T,B,H",
            "us a step: forward",
            "cuDNN",
            "x",
            "forward + backward",
            "cuDNN",
            "x",
            "of the chip",
        ]
        report.heading(f"Against cuDNN through torch.nn, {low}; x: how many times longer cuDNN takes", columns)
        for name in args.cells:
            for shape in args.shapes:
                T, B, H = shape
                ours, theirs = layer_and_peer(name, H, dtype, args.device)
                x = torch.randn(T, B, H, device=args.device, dtype=dtype).requires_grad_()
                weight = torch.randn(T, B, H, device=args.device, dtype=dtype)
                (our_forward, our_both), (their_forward, their_both) = (passes(v, x, weight) for v in (ours, theirs))
                off = furthest(our_both(), their_both())
                label = [name, ",".join(map(str, shape))]
                if not off <= TOLERANCE[low]:
                    report.red += 1
                    report.row([*label, f"WRONG: off by {off:.2g} of the largest, allowed {TOLERANCE[low]:.2g}"])
                    continue
                runs = {"f": our_forward, "cf": their_forward, "b": our_both, "cb": their_both}
                found = medians(runs, args.rounds, args.device)
                needed, moved = work(name, shape, True, dtype.itemsize)
                share = max(needed / flops, moved / bandwidth) / found["b"]
                us = {key: v / T * 1e6 for key, v in found.items()}
                report.row([
                    *label, f"{us['f']:.2f}", f"{us['cf']:.2f}", f"{us['cf'] / us['f']:.2f}",
                    f"{us['b']:.2f}", f"{us['cb']:.2f}", f"{us['cb'] / us['b']:.2f}", f"{share:.1%}",
                ])  # fmt: skip


def any_cell(report: Report, args: argparse.Namespace) -> None:
    """Cells that cuDNN has not, against our plain LSTM; and the plain LSTM against a compiled loop."""
    report.heading("Any cell, bf16: us a step forward + backward, times our plain LSTM's", ["T,B,H", "cell", "us", "x"])
    for shape in args.shapes[:: max(1, len(args.shapes) // 6)]:
        T, B, H = shape
        x = torch.randn(T, B, H, device=args.device, dtype=torch.bfloat16).requires_grad_()
        weight = torch.randn_like(x.detach())
        runs: dict[str, Run] = {}
        for name in CELLS:
            layer = nn.Recurrent(CELLS[name](), H, H, backend="triton", device=args.device, dtype=torch.bfloat16)
            runs[name] = passes(layer, x, weight)[1]
        if T <= 128 and not args.no_loop:  # a compiled loop is unrolled: a longer one compiles for many minutes
            loop = Loop(CELLS["lstm"](), H).to(args.device, torch.bfloat16)
            runs["lstm, compiled loop"] = passes(torch.compile(loop), x, weight)[1]
        found = medians(runs, args.rounds, args.device)
        for name, took in found.items():
            report.row([",".join(map(str, shape)), name, f"{took / T * 1e6:.2f}", f"{took / found['lstm']:.2f}"])


def error_growth(report: Report, args: argparse.Namespace) -> None:
    """How far an LSTM's results are from float64's with the same rounded weights, over T; all are in 16 bits or 32."""
    columns = ["T", "forward", "gradients", "torch.nn: forward", "gradients"]
    for low, dtype in DTYPES.items():
        report.heading(f"Error over T, LSTM, {low}: share of the largest number of each tensor", columns)
        for T in GROWTH if args.device == "cuda" else GROWTH[:3]:
            H = 128 if args.device == "cuda" else 24
            ours, theirs = layer_and_peer("lstm", H, dtype, args.device)
            truth = torch.nn.LSTM(H, H, device=args.device, dtype=torch.float64)
            truth.load_state_dict(theirs.state_dict())
            x = torch.randn(T, 16, H, device=args.device, dtype=dtype)
            weight = torch.randn(T, 16, H, device=args.device, dtype=dtype)
            wanted = passes(truth, x.double().requires_grad_(), weight.double())[1]()
            errors = []
            for layer in (ours, theirs):
                y, *grads = passes(layer, x.clone().requires_grad_(), weight)[1]()
                errors += [furthest([y], wanted[:1]), furthest(grads, wanted[1:])]
            report.row([T, *(f"{e:.1e}" for e in errors)])


def captured(report: Report, args: argparse.Namespace) -> None:
    """That a CUDA graph and another stream give the same numbers as a plain call."""
    if args.device != "cuda":
        report.say("\nCUDA graph and streams: left out, there is no GPU")
        return
    layer = nn.LSTM(96, 96, backend="triton", device="cuda")
    x = torch.randn(64, 16, 96, device="cuda")
    with torch.no_grad():
        wanted = layer(x)[0]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            on_stream = layer(x)[0]
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            inside = layer(x)[0]
        graph.replay()
    for where, got in (("on another stream", on_stream), ("in a CUDA graph", inside)):
        same = torch.equal(wanted, got)
        report.red += not same
        report.say(f"\nThe same call {where}: {'the same numbers' if same else 'WRONG'}")


def checked(report: Report, args: argparse.Namespace) -> bool:
    """Runs the tests of the kernels on the device; True if they are green."""
    if args.device != "cuda" or args.no_tests:
        report.say("\nTests: left out")
        return True
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "tests/engine/triton"], capture_output=True, text=True)
    report.say(f"\nTests on the GPU: {(done.stdout.strip().splitlines() or ['no answer'])[-1]}")
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:], sep="\n", file=sys.stderr)
    return done.returncode == 0


SECTIONS: dict[str, Callable[[Report, argparse.Namespace], None]] = {
    "graphs": captured,
    "cudnn": against_cudnn,
    "cells": any_cell,
    "errors": error_growth,
}


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    assert __doc__
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="three sizes instead of all")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes by the interpreter; times mean nothing")
    parser.add_argument("--out", type=Path, help="write the tables here too, as Markdown")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--cell", action="append", choices=list(PEERS), help="may be repeated; all without it")
    parser.add_argument("--only", action="append", choices=list(SECTIONS), help="may be repeated; all without it")
    parser.add_argument("--no-tests", action="store_true", help="leave out the tests: for a second run on one machine")
    parser.add_argument(
        "--no-loop", action="store_true", help="leave out the compiled loop, which compiles for minutes"
    )
    args = parser.parse_args(given)
    if args.rounds < 1:
        parser.error(f"--rounds must be at least 1; came {args.rounds}")
    args.device = "cpu" if args.rehearse else "cuda"
    args.cells = args.cell or list(PEERS)
    args.shapes = TINY if args.rehearse else QUICK if args.quick else [(T, B, H) for T in TS for B in BS for H in HS]
    if args.rehearse:
        args.rounds, args.no_loop = 1, True
        os.environ["TRITON_INTERPRET"] = "1"
    return args


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
    random.seed(0)
    torch.manual_seed(0)
    report = Report()
    device = torch.cuda.get_device_name() if args.device == "cuda" else "no GPU: a rehearsal, its times mean nothing"
    report.say(f"{device}; {versions()}; cuDNN {torch.backends.cudnn.version()}")
    if not checked(report, args):
        report.say("No times are shown: the tests are red.")
        return 1
    for name in args.only or SECTIONS:
        SECTIONS[name](report, args)
    if args.out is not None:
        part = args.out.with_name(args.out.name + ".part")
        part.write_text("\n".join(report.lines) + "\n", encoding="utf-8")
        part.replace(args.out)
    return 1 if report.red else 0


if __name__ == "__main__":
    sys.exit(main())
