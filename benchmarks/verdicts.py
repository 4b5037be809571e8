"""Counts wrong verdicts: diagnose() over seeds where the truth is known; the table of docs/verdicts.md.

    python benchmarks/verdicts.py                 # 10 seeds a row, a few minutes on one core
    python benchmarks/verdicts.py --seeds 20 --only copy

Each row is one situation. `right` are the cases that are a right verdict there; every other one counts as wrong and is
listed with how often it came. Weights and data are drawn anew for each seed.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn

import throughtime as tt
from throughtime.train.tasks import Task, by_name

HIDDEN = 32


@dataclass(frozen=True)
class Row:
    """A situation: what is told apart in the table, which cases are right, and how one seed of it is diagnosed."""

    data: str
    model: str
    right: tuple[str, ...]
    run: Callable[[], tt.Diagnosis]
    also: Callable[[tt.Diagnosis], bool] = lambda d: True


class Net(nn.Module):
    """A recurrent layer of torch's and a linear map of its output at every step."""

    def __init__(self, kind: str, inputs: int, outputs: int, hidden: int = HIDDEN, symbols: bool = False):
        super().__init__()
        self.embedding = nn.Embedding(inputs, 16) if symbols else None
        self.recurrent = getattr(nn, kind)(16 if symbols else inputs, hidden)
        self.output = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.recurrent(x if self.embedding is None else self.embedding(x))[0])


@torch.no_grad()
def chrono(net: Net, T: int) -> Net:
    """The gates' biases for memories of up to T steps (Tallec & Ollivier 2018)."""
    layer, H = net.recurrent, net.recurrent.hidden_size
    forget = (1 + (T - 2) * torch.rand(H)).log()
    layer.bias_hh_l0.zero_()
    layer.bias_ih_l0[:H], layer.bias_ih_l0[H : 2 * H] = -forget, forget
    return net


@torch.no_grad()
def scaled(g: float, inputs: int = 1, outputs: int = 1) -> Net:
    """A tanh network near its linear range whose U is g times an orthogonal matrix."""
    net = Net("RNN", inputs, outputs, 32)
    layer = net.recurrent
    layer.weight_hh_l0.copy_(g * torch.linalg.qr(torch.randn(32, 32))[0])
    layer.weight_ih_l0.mul_(0.01)
    layer.bias_ih_l0.zero_()
    layer.bias_hh_l0.zero_()
    return net


def ends(out: Tensor, y: Tensor) -> Tensor:
    return nn.functional.mse_loss(out[-1], y)


def symbols(out: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(out.flatten(0, 1), y.flatten())


def on_task(name: str, lag: int, model: Callable[[Task], Net], batch: int = 96) -> tt.Diagnosis:
    task = by_name(name, lag)
    sample = task.sample(batch)
    if task.kind == "value":
        return tt.diagnose(model(task), (sample.inputs, sample.targets[-1:].T), ends)
    return tt.diagnose(model(task), (sample.inputs, sample.targets.masked_fill(~sample.scored, -100)), symbols)


def plain(kind: str) -> Callable[[Task], Net]:
    return lambda task: Net(kind, task.inputs, task.outputs)


def long_memory(task: Task) -> Net:
    return chrono(Net("LSTM", task.inputs, task.outputs), 2 * len(task.sample(1).inputs))


def delayed(T: int, N: int, d: int) -> tuple[Tensor, Tensor]:
    """Real numbers, and as targets those d steps before; what lies before the beginning is drawn anew."""
    x = torch.randn(T + d, N, 1)
    return x[d:], x[:T]


def delayed_symbols(T: int, N: int, d: int, K: int = 6) -> tuple[Tensor, Tensor]:
    x = torch.randint(K, (T + d, N))
    return x[d:], x[:T]


@cache
def letters() -> Tensor:
    """English that every Python carries: its 26 letters, and 0 for all else."""
    return torch.tensor(
        [ord(c) - 96 if c.isalpha() and c.isascii() else 0 for k in sorted(topics) for c in topics[k].lower()]
    )


def text(shuffled: bool, T: int = 40, N: int = 64) -> tuple[Tensor, Tensor]:
    """A piece of it at a random place, in N pieces one after the other."""
    start = int(torch.randint(len(letters()) - N * T - 1, ()))
    ids = letters()[start : start + N * T + 1]
    ids = ids[torch.randperm(len(ids))] if shuffled else ids
    return ids[:-1].view(N, T).T, ids[1:].view(N, T).T


def random_delay() -> int:
    return int(torch.randint(0, 21, ()))


def exact(
    make: Callable[[int, int, int], tuple[Tensor, Tensor]], net: Callable[[], Net], loss: Callable[..., Tensor]
) -> Callable[[], tt.Diagnosis]:
    """y_t = x_{t-d} with d drawn from 0 to 20: right if the data horizon is d and the case follows from it."""

    def run() -> tt.Diagnosis:
        d = random_delay()
        found = tt.diagnose(net(), make(30, 64, d), loss)
        return replace(found, notes=(*found.notes, str(d)))

    return run


def horizon_is_right(found: tt.Diagnosis) -> bool:
    return found.horizons.data is not None and found.horizons.data.steps == int(found.notes[-1])


def trained(steps: int = 250) -> tt.Diagnosis:
    """A GRU that has learned y_t = x_{t-4}."""
    net = Net("GRU", 6, 6, 32, symbols=True)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(steps):
        x, y = delayed_symbols(20, 32, 4)
        optimiser.zero_grad()
        symbols(net(x)[4:], y[4:]).backward()
        optimiser.step()
    return tt.diagnose(net, delayed_symbols(20, 64, 4), symbols, use=True)


def with_nan() -> tt.Diagnosis:
    net, (x, y) = Net("LSTM", 1, 1), delayed(30, 64, 5)
    where = int(torch.randint(3, ()))
    if where == 2:
        net.recurrent.weight_hh_l0.data.view(-1)[int(torch.randint(1000, ()))] = torch.nan
    else:
        (x, y)[where][int(torch.randint(30, ())), 0] = torch.nan
    return tt.diagnose(net, (x, y), nn.functional.mse_loss)


def sines(T: int = 60, N: int = 64) -> tuple[Tensor, Tensor]:
    """The next value of a sine of a random phase: any two of its past values tell it."""
    phase = 6.3 * torch.rand(N)
    x = torch.sin(0.1 * torch.arange(T + 1.0)[:, None] + phase)[..., None]
    return x[:-1], x[1:]


def autoregressive(rho: float = 0.95, T: int = 60, N: int = 64) -> tuple[Tensor, Tensor]:
    """The next value of x[t] = rho x[t-1] + noise: the last value tells all that can be told."""
    x = torch.zeros(T + 1, N, 1)
    for t in range(1, T + 1):
        x[t] = rho * x[t - 1] + torch.randn(N, 1)
    return x[:-1], x[1:]


def any_sines(T: int = 60, N: int = 64) -> tuple[Tensor, Tensor]:
    """The next value of a sine whose period (15 to 45 steps), amplitude (0.2 to 5) and noise (up to a tenth of it) are
    drawn anew for each seed, of a random phase: a check of the sine that nothing was ever tuned on."""
    x = sine(T + 1, 6.2832 * torch.rand(N, 1, 1)).transpose(0, 1)
    return x[:-1], x[1:]


def sine(n: int, phase: Tensor) -> Tensor:
    """[..., n, 1]: a sine of a period, an amplitude and a noise drawn anew."""
    period, amplitude, noise = 15 + 30 * torch.rand(()), 0.2 * 25 ** torch.rand(()), 0.1 * torch.rand(())
    clean = torch.sin(6.2832 * torch.arange(n)[:, None] / period + phase)
    return amplitude * (clean + noise * torch.randn(clean.shape))


def chain(n: int = 20_000, A: int = 8, stay: float = 0.9) -> tuple[Tensor, Tensor]:
    """A text of the first order: the next symbol is the last one again, or any. Far symbols tell of it by the near."""
    new, anew = torch.randint(A, (n + 1,)), torch.rand(n + 1) > stay
    last = torch.where(anew, torch.arange(n + 1), 0).cummax(0).values
    x = new[last]
    return x[:-1], x[1:]


def of_second_order(n: int = 20_000, A: int = 6) -> tuple[Tensor, Tensor]:
    """A text in which the last two symbols draw the next one, most often one of them again."""
    likely = torch.softmax(torch.randn(A, A, A) + 3 * torch.eye(A)[:, None] + 3 * torch.eye(A)[None], -1).cumsum(-1)
    x, u = [0, 0], torch.rand(n + 1).tolist()
    table = likely.tolist()
    for t in range(2, n + 1):
        row = table[x[-1]][x[-2]]
        x.append(next((a for a, p in enumerate(row) if u[t] < p), A - 1))
    v = torch.tensor(x)
    return v[:-1], v[1:]


def stream(of: tuple[Tensor, Tensor], kind: str = "RNN", T: int = 60, B: int = 16) -> tt.Diagnosis:
    """A model that reads one long series in windows, its data horizon from the whole of it."""
    x, y = of
    given = tuple(v[: T * B].view(B, T, *v.shape[1:]).transpose(0, 1) for v in of)
    if x.is_floating_point():
        return tt.diagnose(Net(kind, 1, 1), given, nn.functional.mse_loss, data=(x, y))
    A = 1 + int(x.max())
    return tt.diagnose(Net(kind, A, A, symbols=True), given, symbols, data=(x, y))


def one_by_one(v: Tensor) -> tuple[Tensor, Tensor]:
    return v[:-1], v[1:]


class BothWays(nn.Module):
    """A classifier from the last states of both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.output = nn.GRU(1, HIDDEN, bidirectional=True), nn.Linear(2 * HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(torch.cat(list(self.recurrent(x)[1]), 1))


def both_ways(at: int) -> tuple[Tensor, Tensor]:
    """A label that is the sign of the input at one step of 40."""
    x = torch.randn(40, 96, 1)
    return x, (x[at, :, 0] > 0).long()


def short_window() -> tt.Diagnosis:
    long = tuple(v.transpose(0, 1) for v in delayed(60, 64, 40))
    return tt.diagnose(scaled(1.0), delayed(20, 64, 3), nn.functional.mse_loss, data=long)


def rows() -> Iterable[Row]:
    tasks = [("copy", 30), ("adding", 60), ("temporal-order", 60), ("recall", 40)]
    mse = nn.functional.mse_loss
    for name, lag in tasks:
        for kind in ("RNN", "GRU", "LSTM"):
            run = lambda n=name, g=lag, k=kind: on_task(n, g, plain(k))  # noqa: E731
            yield Row(f"{name}, lag {lag}", f"nn.{kind} as torch draws it", ("vanishes",), run)
        yield Row(
            f"{name}, lag {lag}", "nn.LSTM, long-memory bias", ("healthy",),
            lambda n=name, g=lag: on_task(n, g, long_memory),
        )  # fmt: skip
    yield Row(
        "y = x[t-d], d in 0..20, real", "tanh, U orthogonal", ("healthy", "no memory"),
        exact(delayed, lambda: scaled(1.0), mse), horizon_is_right,
    )  # fmt: skip
    yield Row(
        "y = x[t-d], d in 0..20, 6 symbols", "nn.RNN as torch draws it",
        ("healthy", "vanishes", "unclear", "no memory"),
        exact(delayed_symbols, lambda: Net("RNN", 6, 6, symbols=True), symbols), horizon_is_right,
    )  # fmt: skip
    yield Row(
        "y = x[t-15]", "tanh, U half of orthogonal", ("vanishes",),
        lambda: tt.diagnose(scaled(0.5), delayed(40, 64, 15), mse), lambda d: "contractive" in d.verdict,
    )  # fmt: skip
    yield Row(
        "y = x[t-15]", "tanh, U 1.5 times orthogonal", ("explodes",),
        lambda: tt.diagnose(scaled(1.5), delayed(40, 64, 15), mse),
    )  # fmt: skip
    for kind in ("RNN", "LSTM"):
        yield Row(
            "letters of English, shuffled", f"nn.{kind} as torch draws it", ("no dependency",),
            lambda k=kind: tt.diagnose(Net(k, 27, 27, symbols=True), text(True), symbols),
        )  # fmt: skip
    yield Row(
        "letters of English", "nn.LSTM as torch draws it", ("vanishes", "unclear", "nearer", "healthy"),
        lambda: tt.diagnose(Net("LSTM", 27, 27, symbols=True), text(False), symbols),
        lambda d: d.horizons.data is not None and d.horizons.data.steps >= 3,
    )  # fmt: skip
    yield Row(
        "noise, real", "nn.LSTM as torch draws it", ("no dependency",),
        lambda: tt.diagnose(Net("LSTM", 1, 1), (torch.randn(40, 64, 1), torch.randn(40, 64, 1)), mse),
    )  # fmt: skip
    yield Row(
        "the next value of a sine", "nn.LSTM as torch draws it", ("nearer", "healthy"),
        lambda: tt.diagnose(Net("LSTM", 1, 1), sines(), mse),
    )  # fmt: skip
    yield Row(
        "the next value of an AR(1), rho 0.95", "nn.RNN as torch draws it", ("nearer", "healthy", "no memory"),
        lambda: tt.diagnose(Net("RNN", 1, 1), autoregressive(), mse),
    )  # fmt: skip
    yield Row(
        "the next value of a sine, any", "nn.LSTM as torch draws it", ("nearer", "healthy"),
        lambda: tt.diagnose(Net("LSTM", 1, 1), any_sines(), mse),
    )  # fmt: skip
    harmless = ("nearer", "healthy", "no memory")
    for title, right, make in (
        ("one text of the first order", harmless, chain),
        ("one text of the second order", harmless, of_second_order),
        ("one text, y = x[t-20]", ("vanishes",), lambda: tuple(v[:, 0] for v in delayed_symbols(20_000, 1, 20))),
        ("one text, shuffled", ("no dependency",), lambda: one_by_one(letters()[torch.randperm(20_000)])),
        ("one series, AR(1), rho 0.95", harmless, lambda: tuple(v[:, 0] for v in autoregressive(0.95, 4000, 1))),
        ("one series, y = x[t-20]", ("vanishes",), lambda: tuple(v[:, 0] for v in delayed(4000, 1, 20))),
        ("one series, a sine, any", (*harmless, "unknown"), lambda: one_by_one(sine(4001, torch.zeros(1)))),
        ("one series, noise", ("no dependency",), lambda: (torch.randn(4000, 1), torch.randn(4000, 1))),
    ):
        yield Row(title, "nn.RNN as torch draws it", right, lambda m=make: stream(m()))
    for at, right in ((3, "healthy"), (20, "vanishes")):
        yield Row(
            f"sign of step {at} of 40", "nn.GRU both ways", (right,),
            lambda k=at: tt.diagnose(BothWays(), both_ways(k), nn.functional.cross_entropy),
        )  # fmt: skip
    yield Row("y = x[t-40], window 20", "tanh, U orthogonal", ("window",), short_window)
    yield Row("y = x[t-4]", "nn.GRU, trained on it, with its use", ("healthy",), trained)
    yield Row("NaN in input, target or weight", "nn.LSTM", ("broken",), with_nan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", default="", help="rows whose data or model has this in its name")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| data | model | right verdict | wrong of seeds | wrong ones |")
    print("|---|---|---|---|---|")
    wrong, asked, began = 0, 0, time.perf_counter()
    for row in rows():
        if not any(options.only in v for v in (row.data, row.model)):
            continue
        missed: Counter[str] = Counter()
        for seed in range(options.seeds):
            torch.manual_seed(seed)
            found = row.run()
            if found.case not in row.right:
                missed[found.case] += 1
            elif not row.also(found):
                missed[f"{found.case}, for a wrong reason"] += 1
        n = sum(missed.values())
        wrong, asked = wrong + n, asked + options.seeds
        told = ", ".join(f"{case} ({k})" for case, k in missed.most_common())
        print(f"| {row.data} | {row.model} | {', '.join(row.right)} | {n} of {options.seeds} | {told} |", flush=True)
    print(f"\n{wrong} wrong of {asked}, in {time.perf_counter() - began:.0f} s; torch {torch.__version__}, one thread")


if __name__ == "__main__":
    main()
