"""One update of the weights: windows read, gradients added up, checked, clipped, and the optimiser's step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from throughtime.train.config import RunConfig
from throughtime.train.data.batch import Source
from throughtime.train.measures import run_batch, total_loss
from throughtime.train.session import Session
from throughtime.train.states import detach_state


@dataclass(frozen=True)
class Update:
    """What an update measured before it touched the weights: the mean loss, and the gradient's global norm.

    carried: whether the states went on through all of its windows, none of which began with new sequences.
    """

    loss: float
    norm: float
    carried: bool = True

    @property
    def finite(self) -> bool:
        """Whether the weights may be changed."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


def gradients(session: Session, source: Source) -> Update:
    """Read the windows of a step, and leave the gradient of the mean loss of their targets in the parameters.

    The state is carried from window to window, its graph cut. Windows without a target only carry it on; the step
    has `accumulate` windows with one. Of several processes each reads its share; loss and gradient are those of all.
    """
    group, accumulate = session.group, session.config.accumulate
    session.optimiser.zero_grad()
    losses: list[Tensor] = []
    counts: list[int] = []
    carried = True
    while len(counts) < accumulate:
        batch = source.batch(session.position).to(session.device)
        session.position += 1
        count, carried = batch.total, carried and batch.carried
        with torch.set_grad_enabled(count > 0), group.apart(session.together, len(counts) + 1 < accumulate):
            outputs, state = run_batch(session.model, batch, session.state, session.together)
        session.state = None if batch.filler else detach_state(state)
        if count:
            loss = total_loss(session.model.schema, outputs, batch)
            counts.append(count)
            losses.append(loss.detach())
            # In the size of a mean from the start, lest a sum overflows; of the processes' gradients the mean is taken.
            (loss / (counts[0] / group.size)).backward()
    total = sum(counts)
    if total != counts[0]:
        scale_gradient(session.model, counts[0] / total)
    mean = group.sum(float(torch.stack(losses).double().sum())) / total
    return Update(session.model.schema.measured(mean), gradient_norm(session.model), carried)


def apply(session: Session, update: Update, factor: float = 1.0, clip: float | None = None) -> None:
    """Change the weights by the gradients, clipped, at the learning rate of this step.

    factor, clip: what the guard multiplies that rate by, and clips at besides --clip-norm.
    """
    config = session.config
    bound = min((c for c in (config.clip_norm, clip) if c), default=math.inf)
    if update.norm > bound:
        scale_gradient(session.model, bound / update.norm)
    rate = learning_rate(config, session.step)
    for group in session.optimiser.param_groups:
        group["lr"] = rate * factor
    session.optimiser.step()
    for group in session.optimiser.param_groups:
        group["lr"] = rate
    session.step += 1


def learning_rate(config: RunConfig, step: int) -> float:
    """That of the update after `step` others: a linear warm-up, then as the schedule says.

    linear: lr (1 - p)     cosine: lr (1 + cos(pi p)) / 2     p = (step - warmup) / (steps - warmup)
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    p = (step - config.warmup) / max(config.steps - config.warmup, 1)
    factor = {"constant": 1.0, "linear": 1 - p, "cosine": (1 + math.cos(math.pi * p)) / 2}[config.schedule]
    return config.lr * factor


def gradient_norm(model: torch.nn.Module) -> float:
    """Global norm of the gradient, sqrt(sum ||g||^2), in float64, lest large gradients overflow."""
    squares = [torch.linalg.vector_norm(g, dtype=torch.float64).square() for g in _gradients(model)]
    return float(torch.stack(squares).sum().sqrt())


def scale_gradient(model: torch.nn.Module, factor: float) -> None:
    """Lengthen or shorten the gradient and keep its direction (Pascanu 2013)."""
    for g in _gradients(model):
        g.mul_(factor)


def what_broke(model: torch.nn.Module, update: Update) -> str:
    """In words, what of an update is not finite."""
    if not math.isfinite(update.loss):
        return f"the loss is {update.loss}"
    broken = [name for name, p in model.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all())]
    more = f" (and of {len(broken) - 1} more)" if len(broken) > 1 else ""
    return f"the gradient of {broken[0]}{more} is not finite, while the loss is {update.loss:.4g}"


def _gradients(model: torch.nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]
