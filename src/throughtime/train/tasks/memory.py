"""Tasks of plain remembering: copy a word after a pause; name one symbol after noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator

from throughtime.train.tasks.task import Sample, Task, at_last_step, check, one_hot


@dataclass(frozen=True)
class Copy(Task):
    """Copy a word after a pause of T = `lag` steps: how much, and for how long, is remembered.

    With S = `word` and K = `alphabet`, over T + 2S steps:

        input    S symbols of K, drawn uniformly | T - 1 blanks | the delimiter | S blanks
        target   T + S blanks                                                   | the S symbols

    Every step is scored. Inputs are one-hot over the K symbols, the blank (number K) and the delimiter (K + 1); the
    K + 1 classes are the symbols and the blank. Without memory of the word, the best is to answer blank where that
    is right and to guess in the last S steps: S ln K / (T + 2S) nats per step.

    Arjovsky, Shah & Bengio 2016, section 5.1 (there S = 10, K = 8), after Hochreiter & Schmidhuber 1997.
    """

    lag: int
    word: int = 10
    alphabet: int = 8

    name = "copy"
    citation = "Arjovsky, Shah & Bengio 2016, Unitary evolution recurrent neural networks"

    def __post_init__(self) -> None:
        check(self.name, "lag", self.lag, 1)
        check(self.name, "word", self.word, 1)
        check(self.name, "alphabet", self.alphabet, 2)

    @property
    def steps(self) -> int:
        """T + 2S, the length of each sequence."""
        return self.lag + 2 * self.word

    @property
    def inputs(self) -> int:
        return self.alphabet + 2

    @property
    def outputs(self) -> int:
        return self.alphabet + 1

    @property
    def baseline(self) -> float:
        return self.word * math.log(self.alphabet) / self.steps

    @property
    def lags(self) -> tuple[int, int]:
        return self.lag + self.word, self.lag + self.word

    def sample(self, batch: int, generator: Generator | None = None) -> Sample:
        word = torch.randint(self.alphabet, (self.word, batch), generator=generator)
        numbers = torch.full((self.steps, batch), self.alphabet)
        targets = numbers.clone()
        numbers[: self.word] = word
        numbers[self.word + self.lag - 1] = self.alphabet + 1
        targets[-self.word :] = word
        return Sample(one_hot(numbers, self.inputs), targets, torch.ones_like(targets, dtype=torch.bool))


@dataclass(frozen=True)
class DelayedRecall(Task):
    """Name the first symbol at the last step, `lag` steps later, after noise: the smallest test of a memory.

        input    one of K = `symbols` keys | `lag` symbols, drawn uniformly from `noise` others
        target   (at the last step)          the key

    Only the last step is scored. Without memory the best is to guess: ln K nats.

    Hochreiter & Schmidhuber 1997, experiment 2b (there two keys, x and y, and random symbols between).
    """

    lag: int
    symbols: int = 2
    noise: int = 4

    name = "recall"
    citation = "Hochreiter & Schmidhuber 1997, Long short-term memory, experiment 2b"

    def __post_init__(self) -> None:
        check(self.name, "lag", self.lag, 1)
        check(self.name, "symbols", self.symbols, 2)
        check(self.name, "noise", self.noise, 1)

    @property
    def steps(self) -> int:
        """lag + 1, the length of each sequence."""
        return self.lag + 1

    @property
    def inputs(self) -> int:
        return self.symbols + self.noise

    @property
    def outputs(self) -> int:
        return self.symbols

    @property
    def baseline(self) -> float:
        return math.log(self.symbols)

    @property
    def lags(self) -> tuple[int, int]:
        return self.lag, self.lag

    def sample(self, batch: int, generator: Generator | None = None) -> Sample:
        key = torch.randint(self.symbols, (batch,), generator=generator)
        noise = torch.randint(self.symbols, self.inputs, (self.lag, batch), generator=generator)
        numbers = torch.cat([key.unsqueeze(0), noise])
        return Sample(one_hot(numbers, self.inputs), *at_last_step(self.steps, key))
