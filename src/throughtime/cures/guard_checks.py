"""The numbers that tell whether a training step is well: its losses, the norm of its gradient, that of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from throughtime.errors import ConfigError

WARM_UP = 10
"""Good values to be seen before another one can count as exploded."""


LOSS, GRADIENT, PARAMETER, OPTIMIZER, ELSEWHERE = "loss", "gradient", "parameter", "optimizer", "another process"
VALIDATION = "validation"
_NAMES = {
    LOSS: "the loss",
    GRADIENT: "the norm of the gradient",
    PARAMETER: "the norm of the weights",
    OPTIMIZER: "the norm of what the optimiser keeps",
    VALIDATION: "the validation loss",
}


@dataclass(frozen=True)
class Fault:
    """What was wrong with one number of a step.

    what: LOSS, or a global norm: GRADIENT, PARAMETER, OPTIMIZER (of its state); VALIDATION, a loss after the step;
    ELSEWHERE if it is another process of a distributed training that found something. value: the number.
    exploded: whether it is finite and far beyond all that were seen; otherwise it is NaN or infinite.
    largest: the largest good value before it; None before the first.
    """

    what: str
    value: float
    exploded: bool = False
    largest: float | None = None

    def __str__(self) -> str:
        if self.what == ELSEWHERE:
            return "another process of this training found a bad number"
        if not self.exploded:
            return f"{_NAMES[self.what]} is {self.value}"
        return f"{_NAMES[self.what]} is {self.value:.4g}, the largest before it was {self.largest:.4g}"


@dataclass
class Limit:
    """How large one number may be: `explode` times the largest good one, once WARM_UP good ones were seen.

    With explode=None only NaN and infinity count. `largest` and `seen` are all that it remembers.
    """

    what: str
    explode: float | None = 100.0
    largest: float = 0.0
    seen: int = 0

    def __post_init__(self) -> None:
        if self.explode is not None and not self.explode > 1:
            raise ConfigError(
                "explode must be a number above 1, how many times the largest value so far counts as exploded, or "
                f"None; came {self.explode}"
            )

    def fault(self, value: float) -> Fault | None:
        """What is wrong with a value, if anything; nothing is remembered."""
        if not math.isfinite(value):
            return Fault(self.what, value)
        if self.explode is None or self.seen < WARM_UP or self.largest == 0:
            return None
        return Fault(self.what, value, True, self.largest) if abs(value) > self.explode * self.largest else None

    def accept(self, value: float) -> None:
        """Remembers a good value."""
        self.largest, self.seen = max(self.largest, abs(value)), self.seen + 1


def total_norm(tensors: Iterable[Tensor]) -> float:
    """sqrt(sum ||v||^2) over all tensors; NaN or inf only if an element is, however large the finite ones are."""
    plain = [v for v in (_values(t) for t in tensors) if v.numel()]
    if not plain:
        return 0.0
    norm = float(get_total_norm(plain))
    if math.isfinite(norm):
        return norm
    # The squares of large numbers leave float32, and in float16 of numbers that are not even large.
    largest = max(float(v.abs().amax()) for v in plain) if all(bool(v.isfinite().all()) for v in plain) else math.nan
    if not math.isfinite(largest):
        return math.inf if all(not bool(v.isnan().any()) for v in plain) else math.nan
    return largest * math.sqrt(sum(float((v.double() / largest).square().sum()) for v in plain))


def finite(v: Tensor) -> bool:
    """Whether every element is a number and not infinite."""
    return bool(_values(v).isfinite().all())


def tensors_of(module: nn.Module) -> list[Tensor]:
    """The parameters and the buffers of floating point, without a graph."""
    held = [*module.parameters(), *module.buffers()]
    return [v.detach() for v in held if v.is_floating_point() or v.is_complex()]


def broken(module: nn.Module) -> list[str]:
    """The names of the parameters and buffers that hold NaN or infinity."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return [n for n, v in named if (v.is_floating_point() or v.is_complex()) and not finite(v.detach())]


def clip_gradients(parameters: Iterable[Tensor], norm: float, bound: float) -> bool:
    """Shortens the gradient to the norm `bound`, direction kept (Pascanu 2013); whether it had to."""
    if norm <= bound:
        return False
    with torch.no_grad():
        for p in parameters:
            if p.grad is not None:
                p.grad.mul_(bound / norm)
    return True


def _values(v: Tensor) -> Tensor:
    v = v.detach()
    return v.coalesce().values() if v.is_sparse else v
