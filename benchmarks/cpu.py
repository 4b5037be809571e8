"""The CPU engine against torch.nn, a hand-written loop and JAX, all in the same rounds.

    python -m benchmarks.cpu --quick
    python -m benchmarks.cpu --threads 2 --shape 256,32,128 --cell lstm --cell gru --only training

A row is one shape T,B,H (input size H too). Every round runs each contender once, in a new order; the medians over the
rounds are shown. A training step is the forward pass and all gradients, that of x too, from a given gradient of the
output: the layer alone, without a loss. The peak is the highest of five probes of float32 multiply-adds in registers,
taken beside each shape on as many threads; "torch.nn of peak" says how far anybody could be ahead of it. "x who": how
many times longer that one takes than ours. A row that takes long has fewer rounds, but three.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
from benchmarks.cpu_contenders import CELLS, PEERS, Loop, inference, jax_step, training_step, without_onednn
from benchmarks.cpu_memory import measured
from benchmarks.measure import Run, heading, hold_to, machine, medians, row, times, versions

from throughtime import nn
from throughtime.engine.cpu import library

Shape = tuple[int, int, int]
SHAPES = [(256, 1, 128), (1000, 8, 64), (256, 32, 128), (256, 32, 256), (512, 16, 256), (100, 64, 512), (64, 128, 1024)]
QUICK = [(256, 1, 128), (200, 8, 64), (64, 32, 128)]


def peak(threads: int) -> float:
    """Float32 operations a second of multiply-adds that wait for nothing."""
    return library.load().tt_peak(0, threads, 0.05)


def operations(name: str, T: int, B: int, H: int) -> float:
    """Multiplications and additions of a training step's products: forward, and twice that backward."""
    cell = CELLS[name]()
    return 3 * 2.0 * T * B * H * H * (len(cell.gates) + len(cell.recurrent_gates))


def text(shape: Shape) -> str:
    return ",".join(map(str, shape))


def against_peers(args: argparse.Namespace) -> None:
    """A training step of the cells that torch has."""
    others = ["torch.nn", "torch.nn, no oneDNN", "jax", "loop"]
    columns = ["T,B,H", "cell", "ms", "of peak", "torch.nn of peak", *(f"x {who}" for who in others)]
    heading("Training step", columns)
    for T, B, H in args.shapes:
        for name in [n for n in args.cells if n in PEERS]:
            x = torch.randn(T, B, H, requires_grad=True)
            theirs = training_step(PEERS[name](H, H), x)
            runs = {"ours": training_step(nn.Recurrent(CELLS[name](), H, H), x), "torch.nn": theirs}
            runs["torch.nn, no oneDNN"] = without_onednn(theirs)
            jitted = jax_step(name, T, B, H)
            if jitted is not None:
                runs["jax"] = jitted
            if args.loop:
                runs["loop"] = training_step(Loop(CELLS[name](), H), x)
            found = args.medians(runs)
            most = operations(name, T, B, H) / max(peak(args.threads) for _ in range(5))
            shares = (f"{most / found[who]:.0%}" for who in ("ours", "torch.nn"))
            ratios = (times(found, who, "ours") for who in others)
            row([text((T, B, H)), name, f"{found['ours'] * 1e3:.2f}", *shares, *ratios])


def any_cell(args: argparse.Namespace) -> None:
    """A training step of cells that nobody else has fused, against our own LSTM."""
    heading("Training step of other cells", ["T,B,H", "cell", "ms", "/ our LSTM", "x loop"])
    for T, B, H in args.shapes:
        x = torch.randn(T, B, H, requires_grad=True)
        names = [n for n in args.cells if n not in PEERS]
        runs = {n: training_step(nn.Recurrent(CELLS[n](), H, H), x) for n in ["lstm", *names]}
        if args.loop:
            runs |= {f"loop {n}": training_step(Loop(CELLS[n](), H), x) for n in names}
        found = args.medians(runs)
        for n in names:
            ratio = f"{found[n] / found['lstm']:.2f}"
            row([text((T, B, H)), n, f"{found[n] * 1e3:.2f}", ratio, times(found, f"loop {n}", n)])


def without_gradients(args: argparse.Namespace) -> None:
    """Inference of a whole sequence."""
    heading("Inference", ["T,B,H", "cell", "ms", "x torch.nn", "x torch.nn, no oneDNN"])
    for T, B, H in args.shapes:
        for name in [n for n in args.cells if n in PEERS]:
            x, theirs = torch.randn(T, B, H), PEERS[name](H, H)
            runs = {"ours": inference(nn.Recurrent(CELLS[name](), H, H), x), "torch.nn": inference(theirs, x)}
            runs["no oneDNN"] = without_onednn(runs["torch.nn"])
            found = args.medians(runs)
            ratios = (times(found, who, "ours") for who in ("torch.nn", "no oneDNN"))
            row([text((T, B, H)), name, f"{found['ours'] * 1e3:.2f}", *ratios])


def streaming(args: argparse.Namespace) -> None:
    """What a network in use pays for each new input."""
    H = 128
    heading(f"One step of a stream: T = 1, B = 1, H = {H}, no gradients", ["layer", "us", "x torch.nn"])
    x, h = torch.randn(1, 1, H), torch.zeros(1, 1, H)
    for name in PEERS:
        ours, theirs = getattr(nn, PEERS[name].__name__)(H, H), PEERS[name](H, H)
        state = (h, h) if name == "lstm" else h
        found = args.medians({"ours": inference(ours, x, state), "torch.nn": inference(theirs, x, state)})
        row([PEERS[name].__name__, f"{found['ours'] * 1e6:.0f}", times(found, "torch.nn", "ours")])


def packed(args: argparse.Namespace) -> None:
    """A training step on sequences of lengths 1..T, packed, against a full batch with as many steps in all."""
    columns = ["T,B,H", "cell", "ms", "/ our full batch", "x torch.nn, packed"]
    heading("Packed batch, lengths spread evenly over 1..T", columns)
    for T, B, H in args.shapes:
        if B == 1:
            continue
        lengths = torch.linspace(T, 1, B).round().long()
        full = round(int(lengths.sum()) / B)
        for name in [n for n in args.cells if n in PEERS]:
            ours, theirs = nn.Recurrent(CELLS[name](), H, H), PEERS[name](H, H)
            x = torch.randn(T, B, H, requires_grad=True)
            some = torch.nn.utils.rnn.pack_padded_sequence(x.detach(), lengths)
            some = some._replace(data=some.data.requires_grad_())
            runs = {"packed": training_step(ours, some), "torch.nn, packed": training_step(theirs, some)}
            runs["full"] = training_step(ours, x[:full].detach().requires_grad_())
            found = args.medians(runs)
            ratio = f"{found['packed'] / found['full'] * B * full / int(lengths.sum()):.2f}"
            others = times(found, "torch.nn, packed", "packed")
            row([text((T, B, H)), name, f"{found['packed'] * 1e3:.2f}", ratio, others])


def bf16(args: argparse.Namespace) -> None:
    """A training step under autocast to bf16, states and sums in float32."""
    if library.current() not in library.PAIRS:
        print(f"\nbf16: left out, {library.current()} has no product of bf16 numbers")
        return
    heading("Training step under autocast to bf16", ["T,B,H", "cell", "ms", "x our float32", "x torch.nn in bf16"])
    for T, B, H in args.shapes:
        for name in [n for n in args.cells if n in PEERS]:
            x = torch.randn(T, B, H, requires_grad=True)
            ours, theirs = nn.Recurrent(CELLS[name](), H, H), PEERS[name](H, H)
            runs = {"bf16": training_step(ours, x, low=True), "float32": training_step(ours, x)}
            runs["torch"] = training_step(theirs, x, low=True)
            found = args.medians(runs)
            ratios = (times(found, who, "bf16") for who in ("float32", "torch"))
            row([text((T, B, H)), name, f"{found['bf16'] * 1e3:.2f}", *ratios])


def bare_products(args: argparse.Namespace) -> None:
    """What a product alone reaches: torch.mm of all steps at once, and the same in bf16."""
    heading("torch.mm alone: [T B, H] x [H, 4 H]", ["T,B,H", "ms", "of peak", "bf16 times as fast"])
    for T, B, H in args.shapes:
        x, W = torch.randn(T * B, H), torch.randn(H, 4 * H)
        runs: dict[str, Run] = {
            "float32": partial(torch.mm, x, W),
            "bf16": partial(torch.mm, x.bfloat16(), W.bfloat16()),
        }
        found = args.medians(runs)
        share = 8.0 * T * B * H * H / found["float32"] / peak(args.threads)
        row([text((T, B, H)), f"{found['float32'] * 1e3:.2f}", f"{share:.0%}", times(found, "float32", "bf16")])


def low_memory(args: argparse.Namespace) -> None:
    """The peak of a training step with memory="fast" and "low", and what "low" costs in time."""
    if not sys.platform.startswith("linux"):
        print("\nPeak memory: left out, it is read from Linux's /proc")
        return
    columns = ["T,B,H", "cell", "ours", "ours, low", "torch.nn", "time of low / fast"]
    heading("Peak memory of a training step, MiB beyond weights and input; the loss reads the last state", columns)
    for T, B, H in [(2000, 4, 64)] if args.quick else [(256, 32, 256), (10_000, 4, 128)]:
        for name in [n for n in args.cells if n in PEERS]:
            found = [measured(who, name, T, B, H, args.threads) / 2**20 for who in ("fast", "low", "torch")]
            x = torch.randn(T, B, H, requires_grad=True)
            layers = {memory: nn.Recurrent(CELLS[name](), H, H, memory=memory) for memory in ("fast", "low")}
            took = args.medians({memory: training_step(layer, x) for memory, layer in layers.items()})
            row([text((T, B, H)), name, *(f"{v:.0f}" for v in found), times(took, "low", "fast")])


SECTIONS: dict[str, Callable[[argparse.Namespace], None]] = {
    "training": against_peers,
    "cells": any_cell,
    "inference": without_gradients,
    "streaming": streaming,
    "packed": packed,
    "bf16": bf16,
    "products": bare_products,
    "memory": low_memory,
}


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    assert __doc__
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="three small shapes, few rounds")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=None, help="rounds a shape (9, quick: 5)")
    parser.add_argument("--shape", action="append", type=_shape, help="T,B,H; may be repeated")
    parser.add_argument("--cell", action="append", choices=list(CELLS), help="may be repeated; all without it")
    parser.add_argument("--only", action="append", choices=list(SECTIONS), help="may be repeated; all without it")
    parser.add_argument("--no-loop", action="store_true", help="leave out the hand-written loop, which is slow")
    args = parser.parse_args(given)
    if args.threads < 1:
        parser.error(f"--threads must be at least 1; came {args.threads}")
    args.shapes = args.shape or (QUICK if args.quick else SHAPES)
    args.cells, args.loop = args.cell or list(CELLS), not args.no_loop
    rounds, least = args.rounds or (5 if args.quick else 9), 0.01 if args.quick else 0.03

    def interleaved(runs: dict[str, Run]) -> dict[str, float]:
        return medians(runs, rounds, least, most=10)

    args.medians = interleaved
    return args


def _shape(given: str) -> Shape:
    try:
        T, B, H = map(int, given.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be three whole numbers T,B,H; came {given!r}") from None
    if min(T, B, H) < 1:
        raise argparse.ArgumentTypeError(f"T, B and H must be at least 1; came {given!r}")
    return T, B, H


def main() -> None:
    args = arguments()
    random.seed(0)
    torch.manual_seed(0)
    hold_to(args.threads)
    os.environ["THROUGHTIME_BACKEND"] = "cpu"  # these numbers are the CPU kernels', or there are none
    warnings.filterwarnings("ignore", message="TF32 acceleration")  # torch's own, on switching oneDNN off
    peaks = library.load().tt_peak(0, args.threads, 0.3)
    print(f"{machine()}; {args.threads} threads; {library.current()}; peak {peaks / 1e9:.0f} GFLOP/s in float32")
    print(versions())
    for name in args.only or SECTIONS:
        SECTIONS[name](args)


if __name__ == "__main__":
    main()
