"""The sections of the GPU benchmark that check: every cell against the torch backend, CUDA graphs, streams, devices."""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable

import torch
from benchmarks.gpu_parts import Report, furthest, rounded

from throughtime import cells, nn

Step = Callable[[], list[torch.Tensor]]


def every_cell(report: Report, args: argparse.Namespace) -> None:
    """One training step of every cell in float32 by the Triton kernels and by torch: one program, and several."""
    report.heading("Every cell against the torch backend, float32", ["cell, H", "the same", "largest error"])
    for name in cells.NAMES:
        for H in (24, 300) if args.device == "cuda" else (17,):
            with report.told(f"{name}, {H}"), rounded(False):
                layers = [nn.Recurrent(cells.by_name(name), 8, H, backend=b, device=args.device)
                          for b in ("triton", "torch")]  # fmt: skip
                layers[1].load_state_dict(layers[0].state_dict())
                T, B = (6, 5) if args.device == "cuda" else (2, 2)
                x = torch.randn(T, B, 8, device=args.device, requires_grad=True)
                error = furthest(*(step_of(layer, x)() for layer in layers))
                report.check(f"{name}, {H}", error < 1e-4, f"{error:.1e}")


def step_of(layer: torch.nn.Module, x: torch.Tensor) -> Step:
    """A training step: output and gradients."""

    def step() -> list[torch.Tensor]:
        y = layer(x)[0]
        return [y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]

    return step


def captured(report: Report, args: argparse.Namespace) -> None:
    """That a CUDA graph, another stream, and another device give the same numbers as a plain call."""
    # Before the first product: cuBLAS by itself promises the same numbers on one stream only.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    report.heading("The same numbers", ["where, cell, H", "yes", "what was seen"])
    small = args.device != "cuda"
    grid = [("lstm", 96), ("lstm", 512), ("gru-reset-before", 300), ("additive-memory", 64)]
    for name, H in [("lstm", 17)] if small else grid:
        layer = nn.Recurrent(cells.by_name(name), 32, H, backend="triton", device=args.device)
        x = torch.randn(*((3, 2, 32) if small else (64, 16, 32)), device=args.device, requires_grad=True)
        step = step_of(layer, x)
        for where, check in (("twice", _twice), ("on two streams", _on_streams), ("in a CUDA graph", _in_a_graph),
                             ("on the second device", _elsewhere)):  # fmt: skip
            label = f"{where}, {name}, {H}"
            with report.told(label):
                said = check(step, layer, x, args.device)
                if said is not None and said.startswith("left out"):
                    report.row([label, "-", said])
                else:
                    report.check(label, said is None, said or "")


def _same(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> str | None:
    off = [n for n, (a, b) in enumerate(zip(found, wanted, strict=True)) if not torch.equal(a, b)]
    return None if not off else f"tensors {off} differ, the most by {furthest(found, wanted):.1e} of the largest"


def _twice(step: Step, layer: torch.nn.Module, x: torch.Tensor, device: str) -> str | None:
    return _same(step(), step())


def _on_streams(step: Step, layer: torch.nn.Module, x: torch.Tensor, device: str) -> str | None:
    if device != "cuda":
        return "left out: there is no GPU"
    wanted, found = step(), []
    for stream in [torch.cuda.Stream() for _ in range(2)]:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found.append(step())
    torch.cuda.synchronize()
    return next((said for said in (_same(v, wanted) for v in found) if said), None)


def _in_a_graph(step: Step, layer: torch.nn.Module, x: torch.Tensor, device: str) -> str | None:
    if device != "cuda":
        return "left out: there is no GPU"
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    for _ in range(3):  # the counters of a barrier must be new in each replay
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        said = _same(found, step())
        if said:
            return said
    return None


def _elsewhere(step: Step, layer: torch.nn.Module, x: torch.Tensor, device: str) -> str | None:
    if torch.cuda.device_count() < 2:
        return "left out: there are no two GPUs"
    wanted = step()
    there = step_of(layer.to("cuda:1"), x.detach().to("cuda:1").requires_grad_())()
    layer.to("cuda:0")
    return _same([v.to("cuda:0") for v in there], wanted)


def tests(report: Report, args: argparse.Namespace) -> None:
    """The tests of the kernels on the device, on as many processes as there are cores where pytest-xdist is there."""
    if args.device != "cuda":
        report.say("\nTests on the GPU: left out, there is no GPU; python -m pytest tests/engine/triton runs them here")
        return
    command = [sys.executable, "-m", "pytest", "-q", "tests/engine/triton", "-m", "not slow"]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", "auto"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(1.0, args.seconds))
    except subprocess.TimeoutExpired:
        report.say(f"\nTests on the GPU: not done after {args.seconds:.0f} seconds; run them by themselves")
        report.red += 1
        return
    report.say(f"\nTests on the GPU: {(done.stdout.strip().splitlines() or ['no answer'])[-1]}")
    if done.returncode:
        report.red += 1
        report.say("The tests are red: no time above counts.")
        print(done.stdout[-6000:], done.stderr[-2000:], sep="\n", file=sys.stderr)
