"""One trial: a copy of the model trained for some steps with a candidate's changes, and what was seen of it."""

from __future__ import annotations

import copy
import math
import statistics
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.cures.clip import ClipNorm, global_norm, named_gradients
from throughtime.cures.prescribe_recipe import Recipe
from throughtime.cures.prescribe_remedies import Candidate, Training
from throughtime.diagnosis.assemble import from_capture
from throughtime.diagnosis.batches import Batch
from throughtime.diagnosis.untouched import left_alone, untouched
from throughtime.errors import FlowError, ThroughtimeError
from throughtime.flow import Horizon, drawing
from throughtime.flow.capture import capture
from throughtime.plain import Plain

WORST, RISEN = 2.0, 1.1  # times the loss at the start: above it, of a step or at the end, a training does not hold
_alone = threading.Lock()  # torch's random numbers and threads belong to the process: one trial at a time in each


@dataclass(frozen=True)
class Job:
    """What all trials share. `of` is the loss of an output and a batch; `fraction` that of the gradient horizon."""

    model: nn.Module
    recipe: Recipe
    of: Callable[[Any, Batch], Tensor]
    train: tuple[Batch, ...]
    held: tuple[Batch, ...]
    steps: int
    clip: float | None = None
    fraction: float = 0.01


@dataclass(frozen=True)
class Trial(Plain):
    """One candidate with one seed, as plain data. Losses are the user's own, in its units.

    start, end:   the loss on batches that are not trained on, before the first step (the changes made) and after the
                  last; inf for one that is not a number.
    horizons:     the gradient horizon of the recurrence that reaches farthest, before and after, in steps; None where
                  it could not be measured.
    losses, norms: of each step: the loss of its batch, and the global norm of the gradient before clipping.
    broken:       the step at which the loss, the gradient or the weights were not finite, where it ended; or None.
    seconds:      the median time of one step.
    failed:       why it could not be run at all; "" if it was.
    """

    candidate: str
    seed: int
    start: float = math.inf
    end: float = math.inf
    horizons: tuple[Horizon | None, Horizon | None] = (None, None)
    losses: tuple[float, ...] = ()
    norms: tuple[float, ...] = ()
    broken: int | None = None
    seconds: float = math.nan
    failed: str = ""

    def plot(self, ax: Any = None) -> Any:
        """Draws the loss of the batches and the norm of the gradient by step; gives the axes.

        ax: where to draw; None for a new figure. Raises ThroughtimeError where matplotlib is missing.
        """
        curves = {"loss of the batch": self.losses, "norm of the gradient": self.norms}
        return drawing.lines(curves, ax, xlabel="step", ylabel="loss, gradient norm")

    @property
    def worst(self) -> float:
        """The largest loss of a step as a multiple of the loss at the start; inf if it broke."""
        if self.broken is not None:
            return math.inf
        return max(self.losses, default=0.0) / self.start if self.start > 0 else math.nan

    @property
    def held(self) -> bool:
        """Whether the training held: it came through, no step's loss leapt above twice that at the start, and it did
        not end a tenth above it. For losses that are not above 0 only the first is asked."""
        if self.broken is not None or self.failed:
            return False
        return not self.worst > WORST and (self.start <= 0 or self.end <= RISEN * self.start)


def run_trial(job: Job, candidate: Candidate, seed: int) -> Trial:
    """Runs one trial, on a copy; everything random in it follows from the seed, the order of the batches from it alone.

    For a candidate with remedies an exception is told in `failed`; with none it is the user's own and passes through.
    """
    with _alone, left_alone(None), _one_thread(), torch.inference_mode(False), torch.enable_grad():
        try:
            return _run(job, candidate, seed)
        except Exception as error:
            if not candidate.remedies:
                raise
            told = " ".join(str(error).split())
            kind = "" if isinstance(error, ThroughtimeError) else f"{type(error).__name__}: "
            return Trial(candidate.name, seed, failed=f"{kind}{told}")


class _one_thread:
    """Trials run side by side, each on one thread: two pools of threads would fight over the cores."""

    def __enter__(self) -> None:
        self.had = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.had)


def _run(job: Job, candidate: Candidate, seed: int) -> Trial:
    torch.manual_seed(seed)
    clip = None if job.clip is None else ClipNorm(job.clip, nonfinite="leave", keep=1)
    training = Training(copy.deepcopy(job.model), clip=clip)
    candidate.apply(training)
    model = training.model
    optimiser = job.recipe.build(model, training.rate)
    start, first = _loss(job, model), _horizon(job, model)
    losses: list[float] = []
    norms: list[float] = []
    times: list[float] = []
    broken: int | None = None
    for n, batch in enumerate(_order(job.train, job.steps, seed)):
        began = perf_counter()
        optimiser.zero_grad()
        loss, norm = _backward(job, training, batch)
        losses.append(loss)
        norms.append(norm)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            broken = n
            break
        if training.clip is not None:
            training.clip(model)
        optimiser.step()
        times.append(perf_counter() - began)
    if broken is None and not all(bool(p.isfinite().all()) for p in model.parameters()):
        broken = len(losses) - 1
    end = math.inf if broken is not None else _loss(job, model)
    last = None if broken is not None else _horizon(job, model)
    typical = statistics.median(times[min(2, len(times) - 1) :]) if times else math.nan
    return Trial(candidate.name, seed, start, end, (first, last), tuple(losses), tuple(norms), broken, typical)


def _backward(job: Job, training: Training, batch: Batch) -> tuple[float, float]:
    """The loss and the global norm of its gradient, which is left in the parameters."""
    model = training.model
    if training.penalty is None:
        value = job.of(model(*batch.args, **batch.kwargs), batch)
        value.backward()
    else:
        with capture(model) as captured:
            value = job.of(model(*batch.args, **batch.kwargs), batch)
            value.backward()
        if math.isfinite(value.item()):
            training.penalty(captured, model).backward()
    return value.item(), global_norm(list(named_gradients(model).values()))


def _order(batches: Sequence[Batch], steps: int, seed: int) -> list[Batch]:
    """The batches of each step: all of them in a new order, again and again; the same for every candidate."""
    generator, found = torch.Generator().manual_seed(seed), list[Batch]()
    while len(found) < steps:
        found += [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
    return found[:steps]


def _loss(job: Job, model: nn.Module) -> float:
    """The mean loss on the batches held out, in eval mode."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        with untouched(model), torch.no_grad():
            found = [job.of(model(*b.args, **b.kwargs), b).item() for b in job.held]
    finally:
        for module, mode in modes:
            module.training = mode
    mean = sum(found) / len(found)
    return mean if math.isfinite(mean) else math.inf


def _horizon(job: Job, model: nn.Module) -> Horizon | None:
    batch = job.held[0]
    try:
        with untouched(model):
            with capture(model) as captured:
                job.of(model(*batch.args, **batch.kwargs), batch).backward()
            return from_capture(captured, fraction=job.fraction).horizons.gradient
    except FlowError:
        return None
