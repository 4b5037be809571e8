"""What the gradient through time costs: the exact (t,k) map against autograd, a lag profile against a training step.

    python -m benchmarks.flow_cost --quick
    python -m benchmarks.flow_cost --threads 2 --shape 256,4,128 --cell lstm

The map holds ||dL_t/dz_k|| and the same of every state for all pairs of steps. Autograd has it from a loop that keeps
every step, by T backward passes, each for one loss and through the steps before it only; or by passes batched over many
losses (`is_grads_batched`), all T at once or in blocks of rows, the best of three sizes. Everybody starts at the
weights, the input and dL/dy, the forward pass included, with denormal numbers flushed to zero; and everybody's map is
compared before anything is timed. "of peak": the multiplications and additions of the recurrent products, T(T+1)/2 B G
H H of each, as a share of what the machine does in registers. It may pass 100 %: gates whose gradients are multiples of
one another share one product.

The profile is `flow.lag_profile` of one captured training step: 8 anchors, 4 sequences, float32, nothing kept from run
to run. The step is that of an LSTM between an embedding and a linear layer, with the loss and plain SGD.

--clock cpu counts the process's own seconds: for one thread on a machine that others use too.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from benchmarks.measure import Run, heading, hold_to, machine, medians, row, versions
from torch import Tensor, nn

import throughtime
from throughtime import cells, flow
from throughtime.engine.cpu import library
from throughtime.engine.trace import step_of

CELLS = {"lstm": cells.LSTM, "gru": cells.GRU, "rnn": cells.Simple}
BLOCKS = (32, 64, 128)
DTYPES = ("float64", "float32")
Shape = tuple[int, int, int]
Kept = list[list[Tensor]]


def loop(module: nn.Module, x: Tensor) -> Kept:
    """The layer over x as one writes it by hand, step by step: the net inputs, then every state, each at every step."""
    cell, w = module.step_cell(), module.layer_weights()[0][0]
    dtype, H = x.dtype, w.weight_hh.shape[1]
    W, U, b_x, b_h = (v.detach().to(dtype) for v in w[:4])
    x = x.requires_grad_()
    state = [x.new_zeros(x.shape[1], H) for _ in cell.states]
    kept: Kept = [[] for _ in range(1 + len(state))]
    for px in F.linear(x, W, b_x).unbind(0):
        ph = F.linear(state[0], U, b_h)
        z = px + ph
        if cell.apart:  # of the GRU's candidate both products, apart
            z = torch.cat([z[:, : 2 * H], px[:, 2 * H :], ph[:, 2 * H :]], -1)
        state = list(step_of(cell, [*z.chunk(len(cell.columns), -1), *state]))
        for to, v in zip(kept, (z, *state), strict=True):
            to.append(v)
    return kept


def one_by_one(module: nn.Module, x: Tensor, g: Tensor) -> Tensor:
    """The maps [1 + S, T, T] by one backward pass for each loss."""
    kept, T = loop(module, x), len(x)
    maps = torch.zeros(len(kept), T, T, dtype=torch.float64)
    for t in range(T):
        n = t + 1
        found = torch.autograd.grad(kept[1][t], [v for of in kept for v in of[:n]], g[t], retain_graph=True)
        for i in range(len(kept)):
            maps[i, t, :n] = torch.stack(found[i * n : (i + 1) * n]).flatten(1).norm(dim=1)
    return maps


def batched(module: nn.Module, x: Tensor, g: Tensor, rows: int) -> Tensor:
    """The same by backward passes batched over `rows` losses."""
    kept, T = loop(module, x), len(x)
    maps = torch.zeros(len(kept), T, T, dtype=torch.float64)
    for first in range(0, T, rows):
        n = min(T, first + rows)
        enters = [g.new_zeros(n - first, *g.shape[1:]) for _ in range(first, n)]
        for t, v in enumerate(enters):
            v[t] = g[first + t]
        wanted = [v for of in kept for v in of[:n]]
        found = torch.autograd.grad(kept[1][first:n], wanted, enters, retain_graph=True, is_grads_batched=True)
        for i in range(len(kept)):
            maps[i, first:n, :n] = torch.stack(found[i * n : (i + 1) * n], 1).flatten(2).norm(dim=2)
    return maps


def ours(module: nn.Module, x: Tensor, g: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.stack(list(flow.gradient_flow(module, x, g, dtype=dtype).maps.values()))


def furthest(maps: Tensor, exact: Tensor) -> float:
    """The largest relative error among sizes above 1e-15: the squares in autograd's norms then stay within float32."""
    seen = exact > 1e-15
    return float(((maps - exact).abs() / exact)[seen].max())


def peak(dtype: torch.dtype, threads: int) -> float:
    """Operations a second of multiply-adds that wait for nothing: the best of many short probes."""
    lib = library.load()
    return max(lib.tt_peak(int(dtype == torch.float64), threads, 0.003) for _ in range(100))


def exact_map(args: argparse.Namespace) -> None:
    titles = ["T,B,H", "cell", "dtype", "ours, ms", "of peak", "x one by one", "x batched, all", "x batched, blocks"]
    heading("The exact map of the gradient", [*titles, "ours, error", "theirs, error"])
    for T, B, H in args.shape:
        for name in args.cell:
            torch.manual_seed(0)
            module = throughtime.nn.Recurrent(CELLS[name](), H, H)
            x, g = torch.randn(T, B, H), torch.randn(T, B, H)
            exact = ours(module, x, g, torch.float64)
            for dtype in (getattr(torch, d) for d in args.dtype):
                mine, given = (module, x, g, dtype), (module, x.to(dtype, copy=True), g.to(dtype))
                error, theirs = furthest(ours(*mine), exact), furthest(one_by_one(*given), exact)
                for rows in (T, *BLOCKS):
                    theirs = max(theirs, furthest(batched(*given, rows), exact))
                if max(error, theirs) > (1e-9 if dtype == torch.float64 else 1e-3):
                    raise SystemExit(f"the maps differ by {error:.1e} and {theirs:.1e}: nothing is timed")
                runs: dict[str, Run] = {
                    "ours": lambda mine=mine: ours(*mine),
                    "one by one": lambda given=given: one_by_one(*given),
                }
                runs |= {str(rows): lambda given=given, rows=rows: batched(*given, rows) for rows in (T, *BLOCKS)}
                found = medians(runs, args.rounds, 0.02, args.clock)
                work = T * (T + 1) * B * H * H * sum(c.h is not None for c in module.step_cell().columns)
                limit = peak(dtype, args.threads)
                base, best = found["ours"], min(BLOCKS, key=lambda rows: found[str(rows)])
                row([
                    f"{T},{B},{H}", name, str(dtype).removeprefix("torch."), f"{base * 1e3:.0f}",
                    f"{work / base / limit:.0%}", f"{found['one by one'] / base:.1f}", f"{found[str(T)] / base:.1f}",
                    f"{found[str(best)] / base:.1f} (of {best})", f"{error:.0e}", f"{theirs:.0e}",
                ])  # fmt: skip


class Model(nn.Module):
    """What is trained: symbols in, symbols out."""

    def __init__(self, layer: nn.Module, symbols: int, H: int):
        super().__init__()
        self.embed, self.layer, self.out = nn.Embedding(symbols, H), layer, nn.Linear(H, symbols)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(self.embed(x))[0])


def lag_profile(args: argparse.Namespace) -> None:
    titles = ["T,B,H", "layer", "a training step, ms", "the same, captured", "the profile, ms", "profile / step"]
    heading("The profile over lags from 8 anchors of 4 sequences", titles)
    for T, B, H in {(T, B, H) for T, _, H in args.shape for B in (4, 32)}:
        for name, layer in (("torch.nn.LSTM", nn.LSTM(H, H)), ("throughtime.nn.LSTM", throughtime.nn.LSTM(H, H))):
            torch.manual_seed(0)
            model, x = Model(layer, 64, H), torch.randint(64, (T, B))
            sgd = torch.optim.SGD(model.parameters(), 1e-3)

            def step(model: Model = model, sgd: torch.optim.Optimizer = sgd, x: Tensor = x) -> None:
                sgd.zero_grad()
                F.cross_entropy(model(x).flatten(0, 1), x.roll(1, 0).flatten()).backward()
                sgd.step()

            def captured(model: Model = model, step: Run = step) -> flow.Captured:
                with flow.capture(model) as found:
                    step()
                return found.recurrences[0]

            one = captured()
            runs = {"step": step, "captured": captured, "profile": lambda one=one: flow.lag_profile(one)}
            found = medians(runs, 2 * args.rounds + 1, 0.05, args.clock)
            ms = [f"{found[k] * 1e3:.1f}" for k in runs]
            row([f"{T},{B},{H}", name, *ms, f"{found['profile'] / found['step']:.2f}"])


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.flow_cost", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="a small shape, two rounds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=None, help="5, or 2 with --quick")
    parser.add_argument("--shape", type=_shape, action="append", help="T,B,H; may be given more than once")
    parser.add_argument("--cell", choices=list(CELLS), action="append", help="may be given more than once")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="may be given more than once")
    parser.add_argument("--only", choices=list(SECTIONS), action="append", help="may be given more than once")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    args = parser.parse_args(given)
    args.shape = args.shape or ([(64, 4, 32)] if args.quick else [(256, 4, 128)])
    args.cell = args.cell or (["lstm"] if args.quick else list(CELLS))
    args.dtype = args.dtype or list(DTYPES)
    args.rounds = args.rounds or (2 if args.quick else 5)
    args.clock = time.perf_counter if args.clock == "wall" else time.process_time
    return args


def _shape(given: str) -> Shape:
    try:
        T, B, H = (int(v) for v in given.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected T,B,H, three whole numbers; came {given!r}") from None
    return T, B, H


SECTIONS = {"map": exact_map, "profile": lag_profile}


def main() -> None:
    args = arguments()
    random.seed(0)
    hold_to(args.threads)
    torch.set_flush_denormal(True)
    peaks = [peak(dtype, args.threads) / 1e9 for dtype in (torch.float32, torch.float64)]
    clock = "wall clock" if args.clock is time.perf_counter else "the process's own seconds"
    print(f"{machine()}; {args.threads} threads; {library.current()}; {clock}")
    print(f"peak {peaks[0]:.0f} GFLOP/s in float32, {peaks[1]:.0f} in float64; {versions()}")
    for name in args.only or SECTIONS:
        SECTIONS[name](args)


if __name__ == "__main__":
    main()
