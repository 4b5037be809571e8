"""watch(): measures the gradient through time while a model trains, now and then, within a budget of time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from throughtime.diagnosis.budget import Clock
from throughtime.diagnosis.history import Writer
from throughtime.diagnosis.several import name_of, together
from throughtime.diagnosis.watcher import Watch
from throughtime.errors import FlowError


@contextmanager
def watch(
    model: nn.Module | Sequence[nn.Module],
    budget: float = 0.02,
    path: str | os.PathLike[str] | None = None,
    *,
    clock: Clock | None = None,
) -> Iterator[Watch]:
    """Measures the gradient through time of a model while it trains, as often as its budget of time allows.

        with tt.watch(model, budget=0.02, path="watch.jsonl") as w:
            for x, target in batches:
                optimizer.zero_grad()
                criterion(model(x), target).backward()
                optimizer.step()
        print(w)
        print(w.diagnosis())

    The loop stays as it is. From time to time one of its own training steps, from the model's forward pass to the end
    of backward(), is captured (`throughtime.capture`) and then measured: loss, gradient norms, the gradient horizon
    and half-life of every recurrence, the size of the step that follows. The first step is captured at once and
    measured as soon as there is room for that in the budget; at the end of the block, when training is over, the last
    step that was captured is measured with what is left. A step is a backward pass that reaches the model's
    parameters; where gradients are gathered from several, the first is taken.

    The model computes the same numbers bit for bit, random numbers included, and everything is put back at the end.
    An exception of the loop passes through, and what was seen until then is there.

    model:  one, or several that train together.   path: a new file for the history, see `read_history`.
    budget: the share of training time that watching may take, 0.02 for 2 %: measurements wait until it allows them,
            by the times that those before took. `w.cost` is what it took; only a training too short for a single
            measurement takes more, and is told so. 0 measures once, math.inf each step.
    clock:  seconds from any zero, for tests; time.perf_counter if not given.

    What cannot be seen is in `w.notes`: compiled models, forward passes without gradients, other processes. Raises
    ConfigError for a budget that is no share, FlowError for what is no model, CheckpointError for a path that
    cannot be written or is already there.
    """
    w = Watch(budget, path, clock)
    one = _one(model)
    if path is not None:
        w.writer = Writer(Path(path), name_of(one), w.budget.share)
    w.begin()
    try:
        w.look_at(one)
        yield w
    finally:
        w.end()


def _one(model: Any) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, Sequence) and model and all(isinstance(m, nn.Module) for m in model):
        return together(model)
    raise FlowError(f"expected a torch.nn.Module, or several in a list; came {type(model).__name__}")
