"""What watching costs a training: the share it says it took, the share it did take, and whether a bit is another.

    python -m benchmarks.watch_cost                              # all ten cases, unattended, in under 6 minutes
    python -m benchmarks.watch_cost --seconds 5 --only cell      # a look
    python -m benchmarks.watch_cost --threads 2 --budget 0.1
    python -m benchmarks.watch_cost --processor                  # one thread on a machine that others use

Two copies of one training run by turns, a few steps each, one watched and one alone, from the same weights and random
numbers. The watch's clock stands still while the other one trains, and nothing of it is in place then. "told" is what
the watch says it cost, all in all. "extra" is what it did cost, by processor time, which other programs on the machine
do not change much, as a share of the time of the other copy: the turns in which a step was caught or measured, and
those right after them, less the mean turn of the other copy; the end; and for all other turns the median of how much
longer a turn of the watched copy took than the one beside it. "idle" is that last part alone, for one step.
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager

import torch
from benchmarks.measure import heading, hold_to, machine, row, versions
from torch import Tensor, nn

import throughtime as tt
from throughtime.diagnosis import Watch, taps

BLOCK = 0.05  # seconds of one copy's turn, about


class Tagger(nn.Module):
    """A recurrent layer and an output at each step."""

    def __init__(self, layer: nn.Module, width: int):
        super().__init__()
        self.layer, self.out = layer, nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x)[0]).square().mean()


class LanguageModel(nn.Module):
    """The word language model that is everywhere: an embedding, an LSTM of two layers with dropout, a softmax."""

    def __init__(self, words: int = 5000, width: int = 200):
        super().__init__()
        self.embedding, self.out = nn.Embedding(words, width), nn.Linear(width, words)
        self.rnn, self.drop = nn.LSTM(width, width, 2, dropout=0.2), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.out(self.drop(self.rnn(self.drop(self.embedding(x[:-1])))[0]))
        return nn.functional.cross_entropy(y.flatten(0, 1), x[1:].flatten())


class OwnCell(nn.Module):
    """A cell of the user's own, called a step at a time."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.cell, self.out, self.width = Step(width), nn.Linear(width, 8), width

    def forward(self, x: Tensor) -> Tensor:
        h, ys = x.new_zeros(x.shape[1], self.width), []
        for x_t in x:
            h = self.cell(x_t, h)
            ys.append(h)
        return self.out(torch.stack(ys)).square().mean()


class CellLoop(nn.Module):
    """A loop over torch's LSTMCell, two layers, as torch's examples have it."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.lower, self.upper, self.out = nn.LSTMCell(16, width), nn.LSTMCell(width, width), nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        low, high, ys = None, None, []
        for x_t in x:
            low = self.lower(x_t, low)
            high = self.upper(low[0], high)
            ys.append(high[0])
        return self.out(torch.stack(ys)).square().mean()


class Step(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.inner = nn.Linear(16 + width, width)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.inner(torch.cat([x, h], -1)))


def real(T: int, B: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(T, B, 16)


def words(T: int, B: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(5000, (T + 1, B))


SECONDS = 15.0  # that each copy of a training runs, unless told otherwise

# A training: its model and its batch.
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "LSTM, 2 x 128, T 64, B 1": (lambda: Tagger(nn.LSTM(16, 128, 2), 128), real(64, 1)),
    "LSTM, 2 x 128, T 64, B 32": (lambda: Tagger(nn.LSTM(16, 128, 2), 128), real(64, 32)),
    "GRU, 64, T 200, B 8": (lambda: Tagger(nn.GRU(16, 64), 64), real(200, 8)),
    "tt.nn.LSTM, 128, T 64, B 16": (lambda: Tagger(tt.nn.LSTM(16, 128), 128), real(64, 16)),
    "two LSTMCells, 64, T 50, B 16": (CellLoop, real(50, 16)),
    "own cell, 64, T 32, B 1": (OwnCell, real(32, 1)),
    "own cell, 64, T 32, B 32": (OwnCell, real(32, 32)),
    "word LM, 2 x 200, T 35, B 1": (LanguageModel, words(35, 1)),
    "LSTM, 2 x 128, T 64, B 16": (lambda: Tagger(nn.LSTM(16, 128, 2), 128), real(64, 16)),
    "word LM, 2 x 200, T 35, B 20": (LanguageModel, words(35, 20)),
}


class Clock:
    """Seconds in which it is not stopped, by the clock on the wall or by another."""

    now = staticmethod(time.perf_counter)

    def __init__(self) -> None:
        self._since, self._before = self.now(), 0.0
        self._runs = True

    def __call__(self) -> float:
        return self._before + (self.now() - self._since if self._runs else 0.0)

    @contextmanager
    def stopped(self, w: Watch):
        """Time does not pass, and the watch hears nothing."""
        self._before, self._runs = self(), False
        hears = w in taps._to_calls
        taps.leave(w)
        yield
        taps.listen(w)
        if hears:
            taps.hear_calls(w)
        self._since, self._runs = self.now(), True


class Training:
    """One copy of a training, its random numbers its own, and the times of its steps."""

    def __init__(self, model: nn.Module, batch: Callable[[], Tensor]):
        self.model, self.batch = model, batch
        self.optimiser = torch.optim.Adam(model.parameters(), 1e-3)
        self.random = torch.get_rng_state()
        self.steps: list[float] = []
        self.turns: list[float] = []  # processor seconds

    def run(self, steps: int) -> None:
        other = torch.get_rng_state()
        torch.set_rng_state(self.random)
        began = time.process_time()
        for _ in range(steps):
            start = Clock.now()
            self.optimiser.zero_grad()
            loss = self.model(self.batch())
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimiser.step()
            self.steps.append(Clock.now() - start)
        self.turns.append(time.process_time() - began)
        self.random = torch.get_rng_state()
        torch.set_rng_state(other)


def measure(name: str, budget: float, seconds: float) -> None:
    make, batch = CASES[name]
    torch.manual_seed(0)
    first = make()
    alone, watched = (Training(copy.deepcopy(first), batch) for _ in range(2))
    warm = Training(first, batch)
    warm.run(3)
    block = max(1, round(BLOCK / statistics.median(warm.steps)))
    clock, busy = Clock(), []
    with tt.watch(watched.model, budget, clock=clock) as w:
        while sum(alone.steps) < seconds:
            turns = [alone, watched]
            random.shuffle(turns)
            for turn in turns:
                if turn is watched:
                    had = done(w)
                    watched.run(block)
                    busy.append(done(w) != had)
                else:
                    with clock.stopped(w):
                        alone.run(block)
        ended = time.process_time()
    ended = time.process_time() - ended
    same = all(torch.equal(a, b) for a, b in zip(alone.model.parameters(), watched.model.parameters(), strict=True))
    more, idle = extra(alone.turns, watched.turns, busy)
    row(
        [
            name,
            f"{budget:.1%}",
            f"{seconds:.0f}",
            len(alone.steps),
            f"{1e3 * statistics.median(alone.steps):.1f} ms",
            len(w.history),
            f"{1e3 * statistics.median([r.spent for r in w.history] or [0.0]):.0f} ms",
            f"{w.cost:.2%}",
            f"{(more + ended) / sum(alone.turns):+.2%}",
            f"{1e6 * idle / block:+.0f} us",
            "yes" if same else "NO",
        ]
    )


def done(w: Watch) -> tuple[float, ...]:
    """What changes when a step is caught or measured."""
    return (*w.pace._catches, w.pace.measured)


def extra(alone: list[float], watched: list[float], busy: list[bool]) -> tuple[float, float]:
    """Seconds that watching took in all turns, and in a turn in which there was nothing to do."""
    after = [b or before for b, before in zip(busy, [False, *busy], strict=False)]
    there = list(zip(alone, watched, after, strict=True))
    idle = statistics.median([w - a for a, w, b in there if not b] or [0.0])
    usual = statistics.fmean(alone)  # the median would leave out what the others on the machine do
    return sum(w - usual if b else idle for _, w, b in there), idle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each copy's training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", type=float, nargs="*", default=[0.02])
    parser.add_argument("--processor", action="store_true", help="all seconds of the processor: on a busy machine")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    options = parser.parse_args()
    hold_to(options.threads)
    if options.processor:
        Clock.now = staticmethod(time.process_time)
    random.seed(0)
    print(f"{versions()}; {machine()}; {options.threads} thread(s)")
    heading(
        "A training watched, and alone, by turns",
        ["training", "budget", "seconds", "steps", "a step", "measured", "each", "told", "extra", "idle", "same bits"],
    )  # fmt: skip
    for name in CASES:
        if options.only in name:
            for budget in options.budget:
                measure(name, budget, options.seconds)


if __name__ == "__main__":
    main()
