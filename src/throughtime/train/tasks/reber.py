"""The embedded Reber grammar: predict the next symbol, where the last but one repeats the second."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator

from throughtime.train.tasks.task import Sample, Task, check, one_hot

SYMBOLS = "BTPSXVE"
_START, _KEY, _INNER, _R, _SAME, _LAST, _END = 0, 1, 2, 3, 9, 10, 11
# State -> its two equally likely ways on: the symbol that is shown and the next state. The six states of Reber's
# grammar are _R + 0 to _R + 5; the symbol of _SAME is the key, whatever stands here.
_WAYS: dict[int, tuple[tuple[str, int], tuple[str, int]]] = {
    _START: (("B", _KEY), ("B", _KEY)),
    _KEY: (("T", _INNER), ("P", _INNER)),
    _INNER: (("B", _R + 0), ("B", _R + 0)),
    _R + 0: (("T", _R + 1), ("P", _R + 2)),
    _R + 1: (("S", _R + 1), ("X", _R + 3)),
    _R + 2: (("T", _R + 2), ("V", _R + 4)),
    _R + 3: (("X", _R + 2), ("S", _R + 5)),
    _R + 4: (("P", _R + 3), ("V", _R + 5)),
    _R + 5: (("E", _SAME), ("E", _SAME)),
    _SAME: (("E", _LAST), ("E", _LAST)),
    _LAST: (("E", _END), ("E", _END)),
    _END: (("E", _END), ("E", _END)),
}


@dataclass(frozen=True)
class EmbeddedReber(Task):
    """Predict the next symbol of strings in which the last but one symbol repeats the second.

        B (T or P) [a string of Reber's grammar] (the same T or P) E

    Every fork of the grammar is taken with probability 1/2, and the next symbol is asked at every step but the last.
    Right is a string at each step of which the symbols that the grammar allows next have larger outputs than all
    others. `strings` > 1 puts as many strings of Reber's grammar between the two, one after the other: a longer lag.

    A string of Reber's grammar has 8 symbols on average and 6 forks, each worth ln 2 (its states are visited
    1, 1, 2, 1, 1 and 1 times on average). With n strings, 3 + 8n symbols are predicted and 6n + 1 forks cannot be
    foreseen: the floor is (6n + 1) ln 2 / (3 + 8n) nats per step. Who knows the grammar but not the second symbol
    any more loses another ln 2: (6n + 2) ln 2 / (3 + 8n). The means are over all steps of many strings.

    Hochreiter & Schmidhuber 1997, experiment 1; Reber 1967; Cleeremans, Servan-Schreiber & McClelland 1989.
    """

    strings: int = 1

    name = "reber"
    citation = "Hochreiter & Schmidhuber 1997, Long short-term memory, experiment 1"

    def __post_init__(self) -> None:
        check(self.name, "strings", self.strings, 1)

    @classmethod
    def over(cls, lag: int) -> EmbeddedReber:
        """The task with a mean distance of about `lag` steps, in whole strings of 8, between the two symbols."""
        check(cls.name, "lag", lag, 1)
        return cls(max(1, round(lag / 8)))

    @property
    def inputs(self) -> int:
        return len(SYMBOLS)

    @property
    def outputs(self) -> int:
        return len(SYMBOLS)

    @property
    def floor(self) -> float:
        return (6 * self.strings + 1) * math.log(2) / (3 + 8 * self.strings)

    @property
    def baseline(self) -> float:
        return (6 * self.strings + 2) * math.log(2) / (3 + 8 * self.strings)

    @property
    def lags(self) -> tuple[int, None]:
        return 5 * self.strings, None

    def sample(self, batch: int, generator: Generator | None = None) -> Sample:
        symbol_of = torch.tensor([[SYMBOLS.index(s) for s, _ in _WAYS[state]] for state in range(_END + 1)])
        next_of = torch.tensor([[n for _, n in _WAYS[state]] for state in range(_END + 1)])
        state, left = torch.zeros(batch, dtype=torch.long), torch.full((batch,), self.strings)
        key = torch.zeros_like(state)
        shown, allowed, ended = [], [], []
        while not bool((state == _END).all()):
            fork = torch.randint(2, (batch,), generator=generator)
            symbol = symbol_of[state, fork]
            key = torch.where(state == _KEY, symbol, key)
            symbol = torch.where(state == _SAME, key, symbol)
            ways = torch.where((state == _SAME).unsqueeze(1), key.unsqueeze(1), symbol_of[state])
            shown.append(symbol)
            allowed.append(torch.zeros(batch, len(SYMBOLS), dtype=torch.bool).scatter_(1, ways, True))
            ended.append(state == _END)
            left = left - (state == _R + 5).long()
            follows = next_of[state, fork]
            state = torch.where((follows == _SAME) & (left > 0), torch.tensor(_INNER), follows)
        symbols = torch.stack(shown)
        scored = ~torch.stack(ended)[1:]
        targets = symbols[1:].masked_fill(~scored, 0)
        inputs = one_hot(symbols[:-1], len(SYMBOLS)) * scored.unsqueeze(-1)
        return Sample(inputs, targets, scored, scored.sum(0), torch.stack(allowed)[1:])
