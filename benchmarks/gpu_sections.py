"""The sections of the GPU benchmark that time: cuDNN, any cell, the (t,k) map, a compiled loop; and the errors."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from benchmarks.cpu_contenders import CELLS, Loop
from benchmarks.gpu_parts import (
    DTYPES,
    TOLERANCE,
    Report,
    Section,
    furthest,
    layer_and_peer,
    limits,
    medians,
    passes,
    rounded,
    work,
)
from benchmarks.measure import Run

from throughtime import nn
from throughtime.flow import Recurrence
from throughtime.flow.entering import Entering
from throughtime.flow.sent import send
from throughtime.nn.stack import Weights

GROWTH = (16, 64, 256, 1024)


def against_cudnn(name: str) -> Section:
    """The section of one cell against cuDNN's."""

    def section(report: Report, args: argparse.Namespace) -> None:
        for low, (dtype, tf32) in DTYPES.items():
            with rounded(tf32):
                flops, bandwidth = limits(dtype, args.device)
                report.say(f"\n{low}: {flops / 1e12:.3g} T operations/s, {bandwidth / 1e9:.4g} GB/s")
                columns = ["cell", "T,B,H", "us a step: forward", "cuDNN", "x", "forward + backward", "cuDNN", "x",
                           "of the chip"]  # fmt: skip
                title = f"{name} against cuDNN through torch.nn, {low}; x: how many times longer cuDNN takes"
                report.heading(title, columns)
                for shape in args.shapes:
                    label = [name, ",".join(map(str, shape))]
                    with report.told(*label):
                        _row(report, args, name, low, dtype, shape, label, (flops, bandwidth))

    return section


def _row(report, args, name, low, dtype, shape, label, chip) -> None:
    T, B, H = shape
    ours, theirs = layer_and_peer(name, H, dtype, args.device)
    x = torch.randn(T, B, H, device=args.device, dtype=dtype).requires_grad_()
    weight = torch.randn(T, B, H, device=args.device, dtype=dtype)
    (our_forward, our_both), (their_forward, their_both) = (passes(v, x, weight) for v in (ours, theirs))
    off = max(furthest(our_both(), their_both()), furthest([our_forward()], [their_forward()]))
    if not off <= TOLERANCE[low]:
        report.red += 1
        report.row([*label, f"WRONG: off by {off:.2g} of the largest, allowed {TOLERANCE[low]:.2g}"])
        return
    if args.warm:
        return
    runs = {"f": our_forward, "cf": their_forward, "b": our_both, "cb": their_both}
    found = medians(runs, args.rounds, args.device)
    needed, moved = work(name, shape, True, dtype.itemsize)
    share = max(needed / chip[0], moved / chip[1]) / found["b"]
    us = {key: v / T * 1e6 for key, v in found.items()}
    report.row([
        *label, f"{us['f']:.2f}", f"{us['cf']:.2f}", f"{us['cf'] / us['f']:.2f}",
        f"{us['b']:.2f}", f"{us['cb']:.2f}", f"{us['cb'] / us['b']:.2f}", f"{share:.1%}",
    ])  # fmt: skip


def any_cell(report: Report, args: argparse.Namespace) -> None:
    """Cells that cuDNN has not, against our plain LSTM."""
    report.heading("Any cell, bf16: us a step forward + backward, times our plain LSTM's", ["T,B,H", "cell", "us", "x"])
    for shape in args.shapes[:: max(1, len(args.shapes) // 6)]:
        with report.told(",".join(map(str, shape))):
            _cells(report, args, shape, {})


def compiled_loop(report: Report, args: argparse.Namespace) -> None:
    """A loop in torch behind torch.compile, which unrolls it: only short ones, for a long one compiles for minutes."""
    report.heading("Against a compiled loop, bf16: us a step forward + backward, times our plain LSTM's",
                   ["T,B,H", "cell", "us", "x"])  # fmt: skip
    for shape in {(min(T, 64), B, H) for T, B, H in args.shapes if H in (17, 256) and B <= 16}:
        with report.told(",".join(map(str, shape))):
            loop = Loop(CELLS["lstm"](), shape[2]).to(args.device, torch.bfloat16)
            _cells(report, args, shape, {"lstm, compiled loop": torch.compile(loop) if args.device == "cuda" else loop})


def _cells(report, args, shape, others) -> None:
    T, B, H = shape
    x = torch.randn(T, B, H, device=args.device, dtype=torch.bfloat16).requires_grad_()
    weight = torch.randn_like(x.detach())
    runs: dict[str, Run] = {}
    for name in ["lstm"] if others else CELLS:
        layer = nn.Recurrent(CELLS[name](), H, H, backend="triton", device=args.device, dtype=torch.bfloat16)
        runs[name] = passes(layer, x, weight)[1]
    runs |= {name: passes(module, x, weight)[1] for name, module in others.items()}
    found = medians(runs, args.rounds, args.device)
    for name, took in found.items():
        report.row([",".join(map(str, shape)), name, f"{took / T * 1e6:.2f}", f"{took / found['lstm']:.2f}"])


@contextmanager
def measured_by(backend: str) -> Iterator[None]:
    """What `flow` measures is walked by this backend."""
    before = os.environ.get("THROUGHTIME_BACKEND")
    os.environ["THROUGHTIME_BACKEND"] = backend
    try:
        yield
    finally:
        del os.environ["THROUGHTIME_BACKEND"]
        if before is not None:
            os.environ["THROUGHTIME_BACKEND"] = before


def map_of_gradients(report: Report, args: argparse.Namespace) -> None:
    """The exact (t,k) map, all loss steps, against the walk by torch, which is float64; sizes first, then time."""
    report.heading("The (t,k) map: milliseconds; x: how many times longer torch takes; allowed: a relative error",
                   ["cell", "T,B,H", "dtype", "error", "ours", "torch", "x"])  # fmt: skip
    shapes = [(128, 16, 64), (128, 16, 256), (256, 4, 512)] if args.device == "cuda" else args.shapes
    for name in ("rnn", "lstm", "gru"):
        for T, B, H in shapes:
            for dtype, allowed in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
                label = [name, f"{T},{B},{H}", str(dtype).removeprefix("torch.")]
                with report.told(*label):
                    _map(report, args, name, (T, B, H), dtype, allowed, label)


def _map(report, args, name, shape, dtype, allowed, label) -> None:
    T, B, H = shape
    layer = nn.Recurrent(CELLS[name](), H, H, device=args.device, dtype=dtype)
    weights = Weights(*(v.detach() for v in layer.parameters()), (), ())
    x = torch.randn(T, B, H, device=args.device, dtype=dtype)
    runs, found = {}, {}
    for backend, width in (("triton", dtype), ("torch", torch.float64)):
        with measured_by(backend):
            r = replace(Recurrence(CELLS[name](), weights, x), dtype=width)
            g = torch.randn(T, B, H, device=args.device, dtype=torch.float64, generator=_seeded(args.device))
            entering = Entering([g, *[None] * (len(r.cell.states) - 1)])

            def run(r=r, entering=entering, backend=backend):
                with measured_by(backend):
                    return send(r, entering)

            runs[backend], found[backend] = run, run().sizes
    error = max(float(((found["triton"][n] - v).abs() / v.abs().clamp(min=1e-3 * float(v.max()))).max())
                for n, v in found["torch"].items())  # fmt: skip
    if not error <= allowed:
        report.red += 1
        report.row([*label, f"WRONG: {error:.1e}, allowed {allowed:.0e}"])
        return
    took = medians(runs, min(3, args.rounds), args.device)
    ms = {key: v * 1e3 for key, v in took.items()}
    report.row(
        [*label, f"{error:.1e}", f"{ms['triton']:.2f}", f"{ms['torch']:.2f}", f"{ms['torch'] / ms['triton']:.1f}"]
    )


def _seeded(device: str) -> torch.Generator:
    return torch.Generator(device).manual_seed(0)


def error_growth(report: Report, args: argparse.Namespace) -> None:
    """How far an LSTM's results are from float64's with the same rounded weights, over T; all are in 16 bits or 32."""
    columns = ["T", "forward", "gradients", "torch.nn: forward", "gradients"]
    for low in ("bf16", "float32"):
        dtype = DTYPES[low][0]
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
