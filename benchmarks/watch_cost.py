"""What watching costs a training: the share it says it took, the share it did take, and whether a bit is another.

    python -m benchmarks.watch_cost                              # all cases, unattended, in under 12 minutes
    python -m benchmarks.watch_cost --seconds 5 --only cell      # a look
    python -m benchmarks.watch_cost --threads 2 --budget 0.1

Two copies of one training run by turns, a few steps each, one watched and one alone, from the same weights and random
numbers. The watch's clock stands still while the other one trains, and nothing of it is in place then. "told" is what
the watch says it cost; "extra" is the processor time of the watched copy over that of the other, less 1, which other
programs on the machine do not change much; "wall" is the same by the clock on the wall, which they do. "idle" is the
extra time of a step in which nothing is measured, by medians. The first measurement is made whatever it costs, so a
training that is too short exceeds its budget.
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


# A training: its model, its batch, and for how many seconds each copy of it runs unless told otherwise.
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], float]] = {
    "LSTM, 2 x 128, T 64, B 1": (lambda: Tagger(nn.LSTM(16, 128, 2), 128), real(64, 1), 25),
    "LSTM, 2 x 128, T 64, B 32": (lambda: Tagger(nn.LSTM(16, 128, 2), 128), real(64, 32), 25),
    "GRU, 64, T 200, B 8": (lambda: Tagger(nn.GRU(16, 64), 64), real(200, 8), 25),
    "tt.nn.LSTM, 128, T 64, B 16": (lambda: Tagger(tt.nn.LSTM(16, 128), 128), real(64, 16), 25),
    "two LSTMCells, 64, T 50, B 16": (CellLoop, real(50, 16), 25),
    "own cell, 64, T 32, B 1": (OwnCell, real(32, 1), 25),
    "own cell, 64, T 32, B 32": (OwnCell, real(32, 32), 25),
    "word LM, 2 x 200, T 35, B 1": (LanguageModel, words(35, 1), 25),
    "LSTM, 2 x 128, T 64, B 16": (lambda: Tagger(nn.LSTM(16, 128, 2), 128), real(64, 16), 60),
    "word LM, 2 x 200, T 35, B 20": (LanguageModel, words(35, 20), 60),
}


class Clock:
    """Seconds in which it is not stopped."""

    def __init__(self) -> None:
        self._since, self._before = time.perf_counter(), 0.0
        self._runs = True

    def __call__(self) -> float:
        return self._before + (time.perf_counter() - self._since if self._runs else 0.0)

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
        self._since, self._runs = time.perf_counter(), True


class Training:
    """One copy of a training, its random numbers its own, and the times of its steps."""

    def __init__(self, model: nn.Module, batch: Callable[[], Tensor]):
        self.model, self.batch = model, batch
        self.optimiser = torch.optim.Adam(model.parameters(), 1e-3)
        self.random = torch.get_rng_state()
        self.wall: list[float] = []
        self.processor = 0.0

    def run(self, steps: int) -> None:
        other = torch.get_rng_state()
        torch.set_rng_state(self.random)
        began = time.process_time()
        for _ in range(steps):
            start = time.perf_counter()
            self.optimiser.zero_grad()
            loss = self.model(self.batch())
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimiser.step()
            self.wall.append(time.perf_counter() - start)
        self.processor += time.process_time() - began
        self.random = torch.get_rng_state()
        torch.set_rng_state(other)


def measure(name: str, budget: float, seconds: float | None) -> None:
    make, batch, usual = CASES[name]
    seconds = usual if seconds is None else seconds
    torch.manual_seed(0)
    first = make()
    alone, watched = (Training(copy.deepcopy(first), batch) for _ in range(2))
    warm = Training(first, batch)
    warm.run(3)
    block = max(1, round(BLOCK / statistics.median(warm.wall)))
    clock = Clock()
    with tt.watch(watched.model, budget, clock=clock) as w:
        while sum(alone.wall) < seconds:
            turns = [alone, watched]
            random.shuffle(turns)
            for turn in turns:
                if turn is watched:
                    watched.run(block)
                else:
                    with clock.stopped(w):
                        alone.run(block)
        before_end = w.cost  # what is measured at the end comes after the last step that is timed here
    same = all(torch.equal(a, b) for a, b in zip(alone.model.parameters(), watched.model.parameters(), strict=True))
    row(
        [
            name,
            f"{budget:.1%}",
            f"{seconds:.0f}",
            len(alone.wall),
            f"{1e3 * statistics.median(alone.wall):.1f} ms",
            len(w.history),
            f"{1e3 * statistics.median([r.spent for r in w.history] or [0.0]):.0f} ms",
            f"{w.cost:.2%}",
            f"{before_end:.2%}",
            f"{watched.processor / alone.processor - 1:+.2%}",
            f"{sum(watched.wall) / sum(alone.wall) - 1:+.2%}",
            f"{statistics.median(watched.wall) / statistics.median(alone.wall) - 1:+.2%}",
            "yes" if same else "NO",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help="of each copy's training; as the table of cases has it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", type=float, nargs="*", default=[0.02])
    parser.add_argument("--only", default="", help="cases whose name holds this")
    options = parser.parse_args()
    hold_to(options.threads)
    random.seed(0)
    print(f"{versions()}; {machine()}; {options.threads} thread(s)")
    heading(
        "A training watched, and alone, by turns",
        ["training", "budget", "seconds", "steps", "a step", "measured", "each", "told", "told before the end",
         "extra", "wall", "idle", "same bits"],
    )  # fmt: skip
    for name in CASES:
        if options.only in name:
            for budget in options.budget:
                measure(name, budget, options.seconds)


if __name__ == "__main__":
    main()
