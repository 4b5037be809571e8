"""Truncated back-propagation through time: windows over long sequences, the state carried on and its graph cut."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from throughtime.errors import ConfigError, ShapeError
from throughtime.flow.tree import leaves, with_leaves

S = TypeVar("S")


@dataclass(frozen=True)
class Window:
    """One window of `truncated_bptt`: compute the loss of `output` against targets[steps], call backward, and step.

    steps:  the time steps of the output, as a slice of the sequence.     output: what the model returned for them.
    state:  the state behind them, cut from the graph: after the last window the one to go on with.
    """

    steps: slice
    output: Any
    state: Any


def truncated_bptt(
    model: Callable[[Any, Any], tuple[Any, Any]],
    inputs: Any,
    k1: int,
    k2: int | None = None,
    *,
    state: Any = None,
    time: int = 0,
) -> Iterator[Window]:
    """Walks a long sequence in windows of k1 steps; the gradient of each window's loss goes back k2 steps and no more.

        for window in truncated_bptt(model, x, k1=50):
            loss = criterion(window.output, targets[window.steps])
            optimizer.zero_grad();  loss.backward();  optimizer.step()

    Every step of the sequence is scored once, and an update may follow each window. Between windows the state is
    carried and its graph is cut: backward() never runs into the window before (Williams & Peng 1990: BPTT(k2; k1)).

    model:  (inputs of some steps, state) -> (output, state), as any recurrent layer; a state of any structure of
            tensors: tuples, lists, dicts, dataclasses. The first call gets `state`, None for the model's own start.
    inputs: a tensor [T, B, D], or a structure of tensors with the same T; `time` is their time dimension, 1 with
            batch_first.
    k1:     steps from one update to the next; the last window is shorter where T is not a multiple.
    k2:     how far back the gradient of a loss reaches, a multiple of k1; None for k1. A loss at the end of a window
            reaches k2 steps back, one at its begin k2 - k1 + 1: with k1 = 1 all reach k2. With k2 > k1 the steps before
            the window are run again from a state that was kept, with the weights as they are now (the hand-made
            version, retain_graph, fails once the optimiser has changed them), dropout drawn anew; that costs k2/k1
            times the forward pass.

    With constant weights the gradient is the unrolled one, truncated so (tested). Choose k2 above the gradient horizon
    that is wanted: nothing is learnt over longer lags except through the carried state.

    Raises ConfigError for sizes that make no sense, ShapeError for inputs of different lengths or packed ones.
    """
    T = _steps(inputs, time)
    k2 = k1 if k2 is None else k2
    for name, k in (("k1", k1), ("k2", k2)):
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ConfigError(f"{name} must be a whole number of at least 1 step; came {k!r}")
    if k2 % k1:
        raise ConfigError(f"k2 must be a multiple of k1, so that windows begin where a state was kept; came {k2}, {k1}")
    return _windows(model, inputs, T, k1, k2 // k1, state, time)


def _windows(model: Any, inputs: Any, T: int, k1: int, parts: int, state: Any, time: int) -> Iterator[Window]:
    # For the last `parts` windows: their steps, and the state before them, cut.
    past: deque[tuple[slice, Any]] = deque(maxlen=parts)
    before = cut(state)
    for begin in range(0, T, k1):
        steps = slice(begin, min(begin + k1, T))
        past.append((steps, before))
        now = past[0][1]
        output: Any = None
        renewed = []
        for part, _ in past:
            renewed.append((part, cut(now)))
            output, now = _call(model, _at(inputs, part, time), now)
        past = deque(renewed, maxlen=parts)  # the states before each, by the weights of today
        before = cut(now)
        yield Window(steps, output, before)


def windows(inputs: Any, length: int, *, time: int = 0) -> Iterator[tuple[slice, Any]]:
    """The steps and the part of `inputs` of each window of this length, the last one shorter; views, not copies.

    For loops that carry and `cut` the state themselves. Raises as `truncated_bptt`.
    """
    T = _steps(inputs, time)
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise ConfigError(f"length must be a whole number of at least 1 step; came {length!r}")
    for begin in range(0, T, length):
        steps = slice(begin, min(begin + length, T))
        yield steps, _at(inputs, steps, time)


def cut(state: S) -> S:
    """The same state without its graph: tensors detached, in any nest of tuples, lists, dicts and dataclasses.

    The tensors share memory with those given; None stays None.
    """
    return with_leaves(state, [v.detach() for v in leaves(state)])


def restart(state: S, ended: Tensor, batch: int = 1, start: S | None = None) -> S:
    """The state with that of some sequences begun anew, where a new sequence takes an ended one's place in the batch.

    ended: bool [B].    batch: the batch dimension of the state's tensors (1 in torch's [layers, B, H]; 0 for a cell's).
    start: the state to begin with, in the same structure; None for zeros. Raises ShapeError where B does not fit.
    """
    values = leaves(state)
    begin: list[Any] = [0.0] * len(values) if start is None else list(leaves(start))
    if len(begin) != len(values):
        raise ShapeError(f"start has {len(begin)} tensors, the state {len(values)}; give it in the same structure")
    new = []
    for v, first in zip(values, begin, strict=True):
        if ended.dtype != torch.bool or v.dim() <= batch or tuple(ended.shape) != (v.shape[batch],):
            raise ShapeError(
                f"ended must be bool [B], one for each sequence in dimension {batch} of the state {list(v.shape)}; "
                f"came {list(ended.shape)} {ended.dtype}"
            )
        shape = [1] * v.dim()
        shape[batch] = -1
        new.append(torch.where(ended.view(shape).to(v.device), first, v))
    return with_leaves(state, new)


def _call(model: Any, x: Any, state: Any) -> tuple[Any, Any]:
    out = model(x, state)
    if not isinstance(out, tuple) or len(out) != 2:
        came = f"a tuple of {len(out)}" if isinstance(out, tuple) else type(out).__name__
        raise ConfigError(f"the model must return (output, state); came {came}. Wrap it in a function that does")
    return out


def _steps(inputs: Any, time: int) -> int:
    if isinstance(inputs, PackedSequence):
        raise ShapeError("packed sequences cannot be cut into windows; pad them, [T, B, D], and mask the loss")
    values = leaves(inputs)
    if not values or any(v.dim() <= time for v in values):
        raise ShapeError(f"inputs must be tensors with a time dimension {time}; came {[list(v.shape) for v in values]}")
    if any(v.grad_fn is not None for v in values):
        raise ConfigError(
            "the inputs were computed with a graph (an embedding?), which the first backward() uses up; move what "
            "computes them into the model that is walked, or detach them"
        )
    lengths = {v.shape[time] for v in values}
    if len(lengths) > 1:
        raise ShapeError(f"the inputs have different numbers of steps: {sorted(lengths)}")
    return lengths.pop()


def _at(inputs: Any, steps: slice, time: int) -> Any:
    return with_leaves(inputs, [v.narrow(time, steps.start, steps.stop - steps.start) for v in leaves(inputs)])
