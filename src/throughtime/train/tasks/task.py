"""What every generated task is: a source of batches with targets, a loss, and the loss of a guess without memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional

from throughtime.errors import ConfigError, ShapeError


@dataclass(frozen=True)
class Sample:
    """A batch of B sequences of a task.

    inputs: [T, B, D]. targets: [T, B], numbers of classes (int64) or values; 0 at steps that are not scored.
    scored: [T, B], True at the steps whose outputs count. lengths: [B] where sequences differ in length (the steps
    behind a sequence's end are zeros and not scored), else None. allowed: [T, B, classes], where more than one class
    is a right answer at a step, else None.
    """

    inputs: Tensor
    targets: Tensor
    scored: Tensor
    lengths: Tensor | None = None
    allowed: Tensor | None = None

    def to(self, device: torch.device | str) -> Sample:
        """The same batch on another device; lengths stay on the CPU, where packing wants them."""
        moved = {name: getattr(self, name).to(device) for name in ("inputs", "targets", "scored")}
        allowed = None if self.allowed is None else self.allowed.to(device)
        return replace(self, **moved, allowed=allowed)


class Task(ABC):
    """A generated problem: `sample` draws from it, `loss` and `right` judge a model's outputs [T, B, outputs].

    inputs, outputs: sizes of a step's input and of the output that is wanted of a model: logits for kind "classes",
    one value for kind "value". name: as `tasks.by_name` takes it. citation: who posed it.
    """

    name: ClassVar[str]
    citation: ClassVar[str]
    kind: ClassVar[Literal["classes", "value"]] = "classes"
    tolerance: ClassVar[float] = 0.0

    @classmethod
    def over(cls, lag: int) -> Task:
        """The task with a dependency over about `lag` steps."""
        return cls(lag)  # type: ignore[call-arg]

    @property
    @abstractmethod
    def inputs(self) -> int:
        """Size of a step's input, D."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Size of a step's output: the number of classes, or 1."""

    @property
    @abstractmethod
    def baseline(self) -> float:
        """Least mean loss of a model that knows the task but remembers nothing of what it was shown.

        In nats per scored step for kind "classes", as a mean squared error for kind "value".
        """

    @property
    def floor(self) -> float:
        """Least mean loss of a model that remembers all: 0, unless the task has chance in it."""
        return 0.0

    @property
    @abstractmethod
    def lags(self) -> tuple[int, int | None]:
        """Steps from an input to the scored step whose target it decides: the least and the most (None: no bound)."""

    @abstractmethod
    def sample(self, batch: int, generator: Generator | None = None) -> Sample:
        """Draw `batch` sequences, on the CPU; the same generator state gives the same ones."""

    def loss(self, outputs: Tensor, sample: Sample) -> Tensor:
        """The mean over all scored steps of the cross-entropy in nats, or of the squared error; a scalar."""
        chosen = self._outputs(outputs, sample)[sample.scored]
        targets = sample.targets[sample.scored]
        if self.kind == "classes":
            return functional.cross_entropy(chosen, targets)
        return functional.mse_loss(chosen.squeeze(-1), targets.to(chosen.dtype))

    def right(self, outputs: Tensor, sample: Sample) -> Tensor:
        """[B], True where every scored step of a sequence is answered right.

        A class: it has the largest output. Several allowed ones: each has a larger output than any other
        (Hochreiter & Schmidhuber 1997). A value: it is off by less than `tolerance`.
        """
        outputs = self._outputs(outputs, sample)
        if self.kind == "value":
            good = (outputs.squeeze(-1) - sample.targets).abs() < self.tolerance
        elif sample.allowed is not None:
            least = outputs.masked_fill(~sample.allowed, torch.inf).amin(-1)
            good = least > outputs.masked_fill(sample.allowed, -torch.inf).amax(-1)
        else:
            good = outputs.argmax(-1) == sample.targets
        return (good | ~sample.scored).all(0)

    def accuracy(self, outputs: Tensor, sample: Sample) -> float:
        """The part of the sequences that are `right` at every scored step."""
        return float(self.right(outputs, sample).double().mean())

    def solved(self, outputs: Tensor, sample: Sample) -> bool:
        """True where at least 99 % of the sequences are right (Pascanu 2013)."""
        return self.accuracy(outputs, sample) >= 0.99

    def _outputs(self, outputs: Tensor, sample: Sample) -> Tensor:
        wanted = (*sample.targets.shape, self.outputs)
        if tuple(outputs.shape) != wanted:
            raise ShapeError(
                f"the outputs for task {self.name} must be [T, B, {self.outputs}] = {list(wanted)}; "
                f"came {list(outputs.shape)}"
            )
        return outputs


def at_last_step(steps: int, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Targets [T, B] and scored [T, B] for one target [B] at the end of each sequence."""
    spread = targets.new_zeros(steps, len(targets))
    spread[-1] = targets
    scored = torch.zeros(spread.shape, dtype=torch.bool)
    scored[-1] = True
    return spread, scored


def one_hot(numbers: Tensor, size: int) -> Tensor:
    """[..., size] in the default dtype."""
    return functional.one_hot(numbers, size).to(torch.get_default_dtype())


def check(task: str, name: str, value: object, least: int) -> None:
    """Raises ConfigError unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} of the task {task} must be a whole number of at least {least}; came {value!r}")
