"""Tasks of arithmetic over time: the sum, or the product, of two marked numbers in a stream of numbers."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from throughtime.train.tasks.task import Sample, Task, at_last_step, check


@dataclass(frozen=True)
class _TwoMarked(Task):
    """T = `lag` steps of a number, uniform on [0, 1], and a mark, 1 at two of them and else 0.

    One mark is drawn uniformly from the first half of the steps, the other from the second half (of an odd number
    of steps the second half is the larger one).
    """

    lag: int

    kind = "value"
    tolerance = 0.04

    def __post_init__(self) -> None:
        check(self.name, "lag", self.lag, 2)

    @property
    def steps(self) -> int:
        """T, the length of each sequence."""
        return self.lag

    @property
    def inputs(self) -> int:
        return 2

    @property
    def outputs(self) -> int:
        return 1

    @property
    def lags(self) -> tuple[int, int]:
        return 0, self.lag - 1

    @abstractmethod
    def _target(self, first: Tensor, second: Tensor) -> Tensor: ...

    def sample(self, batch: int, generator: Generator | None = None) -> Sample:
        half, column = self.lag // 2, torch.arange(batch)
        numbers = torch.rand(self.lag, batch, generator=generator)
        first = torch.randint(half, (batch,), generator=generator)
        second = torch.randint(half, self.lag, (batch,), generator=generator)
        marks = torch.zeros_like(numbers)
        marks[first, column] = marks[second, column] = 1
        targets = self._target(numbers[first, column], numbers[second, column])
        return Sample(torch.stack([numbers, marks], -1), *at_last_step(self.lag, targets))


@dataclass(frozen=True)
class Adding(_TwoMarked):
    """Add two marked numbers that lie far apart: a real value must be kept, and others be left out.

        input    (a number, uniform on [0, 1]; a mark, 1 at one step of each half)   for T = `lag` steps
        target   (at the last step) the sum of the two marked numbers

    The loss is the squared error. Without memory the best guess is the mean, 1, and its mean squared error is the
    variance of the sum, 2/12 = 1/6. A sum counts as right if it is off by less than 0.04.

    Hochreiter & Schmidhuber 1997, experiment 4, in the form with fixed T and numbers on [0, 1] (Le, Jaitly & Hinton
    2015; Arjovsky, Shah & Bengio 2016).
    """

    name = "adding"
    citation = "Hochreiter & Schmidhuber 1997, experiment 4; Le, Jaitly & Hinton 2015 for this form"

    @property
    def baseline(self) -> float:
        return 1 / 6

    def _target(self, first: Tensor, second: Tensor) -> Tensor:
        return first + second


@dataclass(frozen=True)
class Multiplication(_TwoMarked):
    """Multiply two marked numbers that lie far apart: as `Adding`, but a memory that only adds up is no help.

        input    (a number, uniform on [0, 1]; a mark, 1 at one step of each half)   for T = `lag` steps
        target   (at the last step) the product of the two marked numbers

    The loss is the squared error. Without memory the best guess is the mean, 1/4, and its mean squared error is the
    variance of the product, E[x^2]^2 - E[x]^4 = 1/9 - 1/16 = 7/144. Right is what is off by less than 0.04.

    Hochreiter & Schmidhuber 1997, experiment 5, with fixed T and the marks placed as in `Adding`.
    """

    name = "multiplication"
    citation = "Hochreiter & Schmidhuber 1997, Long short-term memory, experiment 5"

    @property
    def baseline(self) -> float:
        return 7 / 144

    def _target(self, first: Tensor, second: Tensor) -> Tensor:
        return first * second
