"""The temporal order task: in which order did two or three rare symbols come?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator

from throughtime.errors import ConfigError
from throughtime.train.tasks.task import Sample, Task, at_last_step, check, one_hot

_DISTRACTORS = 4
# Tenths of the sequence between which each symbol comes, ends included (Pascanu 2013, supplement).
_PLACES = {2: ((1, 2), (4, 5)), 3: ((1, 2), (3, 4), (6, 7))}


@dataclass(frozen=True)
class TemporalOrder(Task):
    """Name the order of two or three symbols, each A or B, that come far apart in a stream of others.

        input    c, d, e, f drawn uniformly, but A or B at one step of [T/10, 2T/10] and one of [4T/10, 5T/10]
                 (three symbols: [T/10, 2T/10], [3T/10, 4T/10], [6T/10, 7T/10]), for T = `lag` steps
        target   (at the last step) one of the 4 (8) classes AA, AB, BA, BB (AAA, ... BBB)

    Steps are counted from 0, and bounds are rounded down. Inputs are one-hot over A, B, c, d, e, f. Class AB is 1,
    BA is 2: the symbols read as binary digits. Without memory the best is to guess: ln 4 (ln 8) nats.

    Hochreiter & Schmidhuber 1997, experiments 6a and 6b; with fixed T and these places, Pascanu, Mikolov & Bengio
    2013. Raises ConfigError for a T below 10, or any number of symbols but 2 and 3.
    """

    lag: int
    symbols: int = 2

    name = "temporal-order"
    citation = "Pascanu, Mikolov & Bengio 2013, On the difficulty of training recurrent neural networks"

    def __post_init__(self) -> None:
        check(self.name, "lag", self.lag, 10)
        if self.symbols not in _PLACES:
            raise ConfigError(f"symbols of the task {self.name} must be 2 or 3; came {self.symbols!r}")

    @property
    def steps(self) -> int:
        """T, the length of each sequence."""
        return self.lag

    @property
    def inputs(self) -> int:
        return 2 + _DISTRACTORS

    @property
    def outputs(self) -> int:
        return 2**self.symbols

    @property
    def baseline(self) -> float:
        return self.symbols * math.log(2)

    @property
    def lags(self) -> tuple[int, int]:
        return self.lag - 1 - self._places()[-1][1], self.lag - 1 - self._places()[0][0]

    def _places(self) -> list[tuple[int, int]]:
        """The first and the last step at which each symbol may come."""
        return [(low * self.lag // 10, high * self.lag // 10) for low, high in _PLACES[self.symbols]]

    def sample(self, batch: int, generator: Generator | None = None) -> Sample:
        numbers = torch.randint(2, 2 + _DISTRACTORS, (self.lag, batch), generator=generator)
        classes = torch.zeros(batch, dtype=torch.long)
        for low, high in self._places():
            place = torch.randint(low, high + 1, (batch,), generator=generator)
            symbol = torch.randint(2, (batch,), generator=generator)
            numbers[place, torch.arange(batch)] = symbol
            classes = 2 * classes + symbol
        return Sample(one_hot(numbers, self.inputs), *at_last_step(self.lag, classes))
