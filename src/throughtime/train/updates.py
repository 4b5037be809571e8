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
    """What an update measured before it touched the weights: the mean loss, and the gradient's global norm."""

    loss: float
    norm: float

    @property
    def finite(self) -> bool:
        """Whether the weights may be changed."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


def gradients(session: Session, source: Source) -> Update:
    """Read the windows of a step, and leave the gradient of the mean loss of their targets in the parameters.

    The state is carried from window to window, its graph cut. Windows without a target only carry it on; the step
    has `accumulate` windows with one.
    """
    session.optimiser.zero_grad()
    losses: list[Tensor] = []
    counts: list[int] = []
    while len(counts) < session.config.accumulate:
        batch = source.batch(session.position).to(session.device)
        session.position += 1
        count = batch.count
        with torch.set_grad_enabled(count > 0):
            outputs, state = run_batch(session.model, batch, session.state)
        session.state = detach_state(state)
        if count:
            loss = total_loss(session.model.schema, outputs, batch)
            counts.append(count)
            losses.append(loss.detach())
            (loss / counts[0]).backward()  # in the size of a mean from the start, lest a sum overflows
    total = sum(counts)
    if total != counts[0]:
        scale_gradient(session.model, counts[0] / total)
    mean = float(torch.stack(losses).double().sum()) / total
    return Update(session.model.schema.measured(mean), gradient_norm(session.model))


def apply(session: Session, update: Update) -> None:
    """Change the weights by the gradients, clipped, at the learning rate of this step."""
    config = session.config
    if config.clip_norm and update.norm > config.clip_norm:
        scale_gradient(session.model, config.clip_norm / update.norm)
    for group in session.optimiser.param_groups:
        group["lr"] = learning_rate(config, session.step)
    session.optimiser.step()
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
