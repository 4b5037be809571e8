"""Training steps and inference on the CPU against torch.nn, a hand-written loop and JAX, all in the same rounds.

    python -m benchmarks.cpu --quick
    python -m benchmarks.cpu --threads 2 --shape 256,32,128 --cell lstm --cell gru

A row is one shape T,B,H (input size H too) and one cell. Every round runs each contender once, in a new order; the
medians over the rounds are shown. A training step is the forward pass and all gradients of a weighted output sum.
The peak is that of multiply-adds in registers, measured in the same run on as many threads. "x" columns: how many times
longer the other one takes.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import time
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F

import throughtime
from throughtime import cells
from throughtime.engine.cpu import library

SHAPES = [(256, 1, 128), (1000, 8, 64), (256, 32, 128), (256, 32, 256), (512, 16, 256), (100, 64, 512), (64, 128, 1024)]
QUICK = [(256, 1, 128), (200, 8, 64), (64, 32, 128)]
CELLS = {
    "rnn": (cells.Simple, torch.nn.RNN),
    "lstm": (cells.LSTM, torch.nn.LSTM),
    "gru": (cells.GRU, torch.nn.GRU),
    "lstm-peephole": (cells.PeepholeLSTM, None),
    "lstm-1997": (cells.LSTM1997, None),
}


class Loop(torch.nn.Module):
    """What one writes by hand: the input products at once, `unbind`, and the step in torch."""

    def __init__(self, cell: cells.Cell, size: int):
        super().__init__()
        G, R = len(cell.gates), len(cell.recurrent_gates)
        self.cell, self.size = cell, size
        self.W = torch.nn.Parameter(torch.randn(G * size, size) / size**0.5 / 2)
        self.U = torch.nn.Parameter(torch.randn(R * size, size) / size**0.5 / 2)
        self.b = torch.nn.Parameter(torch.zeros(G * size))
        self.units = torch.nn.ParameterList([torch.zeros(size) for _ in cell.units])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        from throughtime.engine.trace import step_of

        state = [x.new_zeros(x.shape[1], self.size) for _ in self.cell.states]
        out = []
        for px in F.linear(x, self.W, self.b).unbind(0):
            ph = F.linear(state[0], self.U)
            xs, hs = px.chunk(len(self.cell.gates), -1), ph.chunk(len(self.cell.recurrent_gates), -1)
            z = []
            for c in self.cell.columns:
                if c.x is not None and c.h is not None:
                    z.append(xs[c.x] + hs[c.h])
                else:
                    z.append(xs[c.x] if c.x is not None else hs[c.h])
            state = list(step_of(self.cell, [*z, *state, *self.units]))
            out.append(state[0])
        return torch.stack(out)


def training_step(module: torch.nn.Module, x: torch.Tensor, low: bool = False) -> Callable[[], object]:
    leaves = [x, *module.parameters()]
    weight = torch.randn(x.shape[0], x.shape[1], module(x.detach())[0].shape[-1]).contiguous()

    def run():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            out = module(x)
            out = out[0] if isinstance(out, tuple) else out
        return torch.autograd.grad((out * weight).sum(), leaves, allow_unused=True)

    return run


def inference(module: torch.nn.Module, x: torch.Tensor) -> Callable[[], object]:
    def run():
        with torch.no_grad():
            return module(x)

    return run


def without_onednn(run: Callable[[], object]) -> Callable[[], object]:
    def off():
        with torch.backends.mkldnn.flags(enabled=False):
            return run()

    return off


def jax_step(name: str, T: int, B: int, H: int) -> Callable[[], object] | None:
    """A jitted `lax.scan` training step, where JAX is installed; the cells that have a peer in torch.nn."""
    try:
        import jax
        import jax.numpy as jnp
    except ImportError:
        return None
    gates = {"rnn": 1, "lstm": 4, "gru": 3}.get(name)
    if gates is None:
        return None

    def step(weights, state, p):
        h, c = state
        q = h @ weights[1]
        if name == "rnn":
            h = jnp.tanh(p + q)
        elif name == "lstm":
            i, f, g, o = jnp.split(p + q, 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
        else:
            (pr, pu, pn), (qr, qu, qn) = jnp.split(p, 3, -1), jnp.split(q, 3, -1)
            u = jax.nn.sigmoid(pu + qu)
            h = (1 - u) * jnp.tanh(pn + jax.nn.sigmoid(pr + qr) * qn) + u * h
        return (h, c), h

    def loss(weights, x, weight):
        projected = x @ weights[0] + weights[2]
        zeros = jnp.zeros((B, H))
        _, y = jax.lax.scan(lambda s, p: step(weights, s, p), (zeros, zeros), projected)
        return (y * weight).sum()

    key = jax.random.PRNGKey(0)
    weights = (
        jax.random.normal(key, (H, gates * H)) / H**0.5 / 2,
        jax.random.normal(key, (H, gates * H)) / H**0.5 / 2,
        jnp.zeros(gates * H),
    )
    x = jax.random.normal(key, (T, B, H))
    both = jax.jit(jax.grad(loss, argnums=(0, 1)))
    return lambda: jax.block_until_ready(both(weights, x, x))


def contenders(name: str, T: int, B: int, H: int, with_loop: bool) -> dict[str, Callable[[], object]]:
    make, peer = CELLS[name]
    ours = throughtime.nn.Recurrent(make(), H, H)
    x = torch.randn(T, B, H, requires_grad=True)
    runs = {"ours": training_step(ours, x), "ours, inference": inference(ours, x.detach())}
    if library.current() == "avx512_bf16":
        runs["ours, bf16"] = training_step(ours, x, low=True)
    if peer is not None:
        theirs = peer(H, H)
        runs["torch.nn"] = training_step(theirs, x)
        runs["torch.nn, no oneDNN"] = without_onednn(training_step(theirs, x))
        runs["torch.nn, inference"] = inference(theirs, x.detach())
    if with_loop:
        runs["loop"] = training_step(Loop(make(), H), x)
    jitted = jax_step(name, T, B, H)
    if jitted is not None:
        runs["jax"] = jitted
    return runs


def medians(runs: dict[str, Callable[[], object]], rounds: int, least: float) -> dict[str, float]:
    """Seconds a run: in each round every contender runs for at least `least` seconds, in a new order."""
    repeats = {}
    for key, run in runs.items():
        run()
        start = time.perf_counter()
        run()
        repeats[key] = max(1, round(least / max(time.perf_counter() - start, 1e-7)))
    times: dict[str, list[float]] = {key: [] for key in runs}
    order = list(runs)
    for _ in range(rounds):
        random.shuffle(order)
        for key in order:
            start = time.perf_counter()
            for _ in range(repeats[key]):
                runs[key]()
            times[key].append((time.perf_counter() - start) / repeats[key])
    return {key: statistics.median(v) for key, v in times.items()}


def operations(name: str, T: int, B: int, H: int) -> float:
    """Multiplications and additions of a training step's products: forward, and twice that backward."""
    cell = CELLS[name][0]()
    return 3 * 2.0 * T * B * H * H * (len(cell.gates) + len(cell.recurrent_gates))


def machine() -> str:
    try:
        with open("/proc/cpuinfo") as f:
            model = next(line.split(":", 1)[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} cores"


def streaming(rounds: int) -> dict[str, float]:
    """One step, one sequence, 128 units, no gradients: what a deployed network pays for each new input."""
    H = 128
    ours, theirs = throughtime.nn.LSTM(H, H), torch.nn.LSTM(H, H)
    x, state = torch.randn(1, 1, H), (torch.zeros(1, 1, H), torch.zeros(1, 1, H))

    def run(module):
        def once():
            with torch.no_grad():
                return module(x, state)

        return once

    return medians({"ours": run(ours), "torch.nn": run(theirs)}, rounds, 0.02)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="three small shapes, few rounds")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=None, help="rounds a shape (9, quick: 5)")
    parser.add_argument("--shape", action="append", help="T,B,H; may be repeated")
    parser.add_argument("--cell", action="append", choices=list(CELLS), help="may be repeated")
    parser.add_argument("--no-loop", action="store_true", help="leave out the hand-written loop, which is slow")
    args = parser.parse_args()
    shapes = [tuple(map(int, s.split(","))) for s in args.shape] if args.shape else QUICK if args.quick else SHAPES
    rounds = args.rounds or (5 if args.quick else 9)
    least = 0.01 if args.quick else 0.03
    random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    os.environ["THROUGHTIME_BACKEND"] = "cpu"  # these numbers are the CPU kernels', or there are none
    warnings.filterwarnings("ignore", message="TF32 acceleration")  # torch's own, on switching oneDNN off
    lib = library.load()
    peak = lib.tt_peak(0, args.threads, 0.3)
    print(f"{machine()}; {args.threads} threads; {library.current()}; peak {peak / 1e9:.0f} GFLOP/s in float32")
    print(f"throughtime {throughtime.__version__}, torch {torch.__version__}, Python {platform.python_version()}\n")
    columns = ["torch.nn", "torch.nn, no oneDNN", "jax", "loop", "torch.nn, inference", "ours, bf16"]
    print("| T,B,H | cell | ms | of peak | " + " | ".join(f"x {c}" for c in columns) + " |")
    print("|---" * (4 + len(columns)) + "|")
    for shape in shapes:
        for name in args.cell or CELLS:
            found = medians(contenders(name, *shape, with_loop=not args.no_loop), rounds, least)
            peak = lib.tt_peak(0, args.threads, 0.05)
            ours = found["ours"]
            cellwise = []
            for c in columns:
                base = found["ours, inference"] if c.endswith("inference") else ours
                cellwise.append(f"{found[c] / base:.2f}" if c in found else "-")
            share = operations(name, *shape) / ours / peak
            row = [",".join(map(str, shape)), name, f"{ours * 1e3:.2f}", f"{share:.0%}", *cellwise]
            print("| " + " | ".join(row) + " |", flush=True)
    step = streaming(rounds)
    print(
        f"\nOne step, B = 1, H = 128, no gradients: ours {step['ours'] * 1e6:.0f} us, "
        f"torch.nn.LSTM {step['torch.nn'] * 1e6:.0f} us ({step['torch.nn'] / step['ours']:.2f} x)"
    )


if __name__ == "__main__":
    main()
