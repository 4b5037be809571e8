"""What a user hands to diagnose(): one batch or several, and a loss of the output, or of the output and the targets."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from throughtime.errors import FlowError

_HOW = (
    "call diagnose(model, x, lambda out: criterion(out, y)), or diagnose(model, batches, criterion) with pairs "
    "(inputs, targets)"
)


@dataclass(frozen=True)
class Batch:
    """What the model is called with, and the targets if they are known."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    targets: Any = None


def read_batches(inputs: Any, loss: Any, most: int) -> tuple[list[Batch], Callable[[Any, Batch], Any]]:
    """The batches in `inputs`, `most` at most, and the loss as a function of the output and the batch.

    A loss of one argument takes the output; of two, output and targets, which are then the last part of each batch.
    Raises FlowError for what can be neither.
    """
    if not callable(loss):
        raise FlowError(f"the loss must be a function of the model's output; came {type(loss).__name__}. {_HOW}")
    if most < 1:
        raise FlowError(f"batches must be at least 1; came {most}")
    if _takes(loss) < 2:
        return [_of_inputs(v) for v in _several(inputs, most)], lambda out, batch: loss(out)
    pairs = [_of_pair(v) for v in _pairs(inputs, most)]
    return pairs, lambda out, batch: loss(out, batch.targets)


def _takes(loss: Any) -> int:
    """How many arguments a loss must be given, or can be where it says *args."""
    try:
        parameters = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters.values()
    except (TypeError, ValueError):
        return 1
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 2
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in by_position and p.default is p.empty for p in parameters)


def _several(inputs: Any, most: int) -> list[Any]:
    if isinstance(inputs, Tensor | PackedSequence | Mapping | tuple):
        return [inputs]
    return _first(inputs, most)


def _pairs(inputs: Any, most: int) -> list[Any]:
    if isinstance(inputs, Tensor | PackedSequence | Mapping):
        raise FlowError(f"this loss takes output and targets, and {type(inputs).__name__} holds no targets; {_HOW}")
    if isinstance(inputs, tuple) and not all(isinstance(v, tuple | list) and len(v) > 1 for v in inputs):
        return [inputs]
    return _first(inputs, most)


def _first(inputs: Any, most: int) -> list[Any]:
    if not isinstance(inputs, Iterable):
        raise FlowError(f"expected a batch, or batches to go through; came {type(inputs).__name__}. {_HOW}")
    found = list(islice(inputs, most))
    if not found:
        raise FlowError(f"there is no batch to look at; {_HOW}")
    return found


def _of_inputs(value: Any) -> Batch:
    if isinstance(value, Mapping):
        return Batch((), dict(value))
    return Batch(tuple(value) if isinstance(value, tuple | list) else (value,))


def _of_pair(value: Any) -> Batch:
    if not isinstance(value, tuple | list) or len(value) < 2:
        came = f"{type(value).__name__} of {len(value)}" if isinstance(value, tuple | list) else type(value).__name__
        raise FlowError(f"each batch must be a pair (inputs, targets); came {came}. {_HOW}")
    given = value[0] if len(value) == 2 and isinstance(value[0], tuple | list) else value[:-1]
    if len(value) == 2 and isinstance(value[0], Mapping):
        return Batch((), dict(value[0]), value[1])
    return Batch(tuple(given), {}, value[-1])
