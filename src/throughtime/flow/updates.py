"""How far a training step moves each parameter, relative to its size: stalled, healthy, or too long."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.errors import FlowError
from throughtime.flow import drawing
from throughtime.plain import Plain

# Rules of thumb, not theory. About 1e-3 is the size that goes with healthy training (Karpathy, CS231n notes, 2015); we
# call it healthy for two powers of ten on each side. Far below: W - a*g is W for any practical purpose (float32 itself
# ends at 6e-8). Above a tenth: a few steps replace the whole of W.
STALLED, TOO_LONG = 1e-5, 1e-1


@dataclass(frozen=True)
class Update(Plain):
    """One parameter's step: ||dW|| and ||W|| (Euclidean, over all elements), and their ratio; no unit.

    unmoved: the share of elements that did not change at all; None where the step was not taken but worked out.
    """

    name: str
    step: float
    weight: float
    unmoved: float | None = None

    @property
    def ratio(self) -> float:
        """||dW|| / ||W||; inf for a step away from exactly 0, 0 for none."""
        if self.step == 0:
            return 0.0
        return math.inf if self.weight == 0 else self.step / self.weight

    @property
    def label(self) -> str:
        """stalled (< 1e-5), healthy, too long (> 1e-1); "from zero" where W was 0; "not finite" after NaN or Inf.

        The thresholds are rules of thumb: two powers of ten around 1e-3 (Karpathy 2015).
        """
        if not (math.isfinite(self.step) and math.isfinite(self.weight)):
            return "not finite"
        if self.weight == 0 and self.step > 0:
            return "from zero"
        if self.ratio < STALLED:
            return "stalled"
        return "too long" if self.ratio > TOO_LONG else "healthy"


@dataclass(frozen=True)
class UpdateSizes(Plain):
    """The size of one training step, parameter by parameter, as plain data. `missing`: those without a gradient."""

    updates: tuple[Update, ...]
    missing: tuple[str, ...] = ()
    measured: bool = False

    def __getitem__(self, name: str) -> Update:
        for update in self.updates:
            if update.name == name:
                return update
        raise FlowError(f"no step of {name!r} is held; there are {', '.join(u.name for u in self.updates) or 'none'}")

    def labelled(self, label: str) -> tuple[str, ...]:
        """The names of the parameters with this label."""
        return tuple(u.name for u in self.updates if u.label == label)

    def plot(self, ax: Any = None) -> Any:
        """Draws ||dW|| / ||W|| by parameter, and what counts as healthy, with matplotlib; gives the axes.

        ax: where to draw; None for a new figure. Raises ThroughtimeError where matplotlib is missing.
        """
        ax, shown = drawing.axes(ax), [u for u in self.updates if math.isfinite(u.ratio)]
        ax.barh([u.name for u in shown], [max(u.ratio, drawing.SMALLEST) for u in shown])
        ax.set_xscale("log")
        ax.axvspan(STALLED, TOO_LONG, color="0.5", alpha=0.12, linewidth=0)
        ax.set_xlim(left=STALLED / 100)
        ax.set_xlabel("||dW|| / ||W|| of a step")
        return ax

    def __str__(self) -> str:
        what = "||dW|| / ||W|| of the step taken" if self.measured else "lr ||g|| / ||W||"
        lines = [f"Size of the update, {what} (rule of thumb: healthy from {STALLED:g} to {TOO_LONG:g})"]
        width = max((len(u.name) for u in self.updates), default=0)
        for u in sorted(self.updates, key=lambda u: -u.ratio):
            still = f", {u.unmoved:.0%} of its elements did not move" if u.unmoved else ""
            lines.append(f"  {u.name:<{width}}  {u.ratio:8.1e}  {u.label}{still}")
        lines += [f"  {name}: no gradient" for name in self.missing]
        return "\n".join(lines)


Named = nn.Module | Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]


def update_sizes(parameters: Named, lr: float | Mapping[str, float]) -> UpdateSizes:
    """The step that plain SGD would take from the gradients that are there: lr ||g|| / ||W|| for each parameter.

    For another optimiser its step differs from lr * g: measure it with `snapshot` and `step_sizes`.
    parameters: a module, or named parameters; their .grad is read. lr: one for all, or by name.
    Raises FlowError for a learning rate that is negative, not finite or missing, and where there is no gradient at all.
    """
    updates, missing = [], []
    for name, W in _named(parameters).items():
        if W.grad is None:
            missing.append(name)
            continue
        rate = lr.get(name, math.nan) if isinstance(lr, Mapping) else lr
        if not (math.isfinite(rate) and rate >= 0):
            raise FlowError(f"the learning rate of {name} must be a number >= 0; came {rate}")
        updates.append(Update(name, rate * _norm(W.grad), _norm(W)))
    if not updates:
        raise FlowError("no parameter has a gradient; call loss.backward() first and measure before zero_grad()")
    return UpdateSizes(tuple(updates), tuple(missing))


def snapshot(parameters: Named) -> dict[str, Tensor]:
    """A copy of the parameters, to be held against them after the optimiser's step by `step_sizes`."""
    return {name: W.detach().clone() for name, W in _named(parameters).items()}


def step_sizes(before: Mapping[str, Tensor], parameters: Named) -> UpdateSizes:
    """The step that was taken, ||W_after - W_before|| / ||W_before||, measured, whatever the optimiser.

        before = snapshot(model);  optimiser.step();  print(step_sizes(before, model))

    Raises FlowError where the parameters are not those of the snapshot.
    """
    after = _named(parameters)
    if before.keys() != after.keys():
        stray = sorted(before.keys() ^ after.keys())
        raise FlowError(f"these are not the parameters of the snapshot: {', '.join(stray[:5])} on one side only")
    updates = []
    for name, W in after.items():
        old, new = before[name], W.detach()
        if old.shape != new.shape:
            raise FlowError(f"{name} was {list(old.shape)} in the snapshot and is {list(new.shape)} now")
        unmoved = (new == old).double().mean().item() if new.numel() else 0.0
        updates.append(Update(name, _norm(new.double() - old.double()), _norm(old), unmoved))
    return UpdateSizes(tuple(updates), (), measured=True)


def _named(parameters: Named) -> dict[str, Tensor]:
    if isinstance(parameters, nn.Module):
        return dict(parameters.named_parameters())
    named = dict(parameters)
    if not all(isinstance(W, Tensor) for W in named.values()):
        raise FlowError("expected a module, or parameters by name; model.named_parameters() gives them")
    return named


def _norm(v: Tensor) -> float:
    v = v.detach()
    v = v.to_dense() if v.is_sparse else v
    return v.norm(dtype=torch.float64).item() if v.dtype != torch.float64 else v.norm().item()
