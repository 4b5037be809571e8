"""Gradient clipping by global norm, by value and per group of parameters, with a record of what was done."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm

from throughtime.errors import ConfigError, NonFiniteError
from throughtime.plain import Plain

NONFINITE = ("raise", "skip", "leave")

Parameters = nn.Module | Tensor | Iterable[Tensor]


@dataclass(frozen=True)
class ClipStep(Plain):
    """What one call of a clipper did: the global norm before, the threshold (inf: none yet), the norm after.

    action: "kept" (nothing changed), "clipped", or for gradients with NaN or Inf "skipped" or "left", by the rule.
    """

    before: float
    threshold: float
    after: float
    action: str


@dataclass
class ClipRecord:
    """The steps of a clipper, in order. `norms` is what `throughtime.cures.advise_clip` takes.

    keep: how many of the last steps are kept; None for all (about 200 bytes each).
    """

    keep: int | None = None
    steps: list[ClipStep] = field(default_factory=list)
    calls: int = 0
    clipped: int = 0
    nonfinite: int = 0

    def add(self, step: ClipStep) -> None:
        self.calls += 1
        self.clipped += step.action == "clipped"
        self.nonfinite += step.action in ("skipped", "left")
        self.steps.append(step)
        if self.keep is not None and len(self.steps) > self.keep:
            del self.steps[0]

    @property
    def norms(self) -> tuple[float, ...]:
        """The global norm before clipping, of each step that is kept."""
        return tuple(s.before for s in self.steps)

    def __str__(self) -> str:
        if not self.calls:
            return "Clipped nothing yet: no call"
        text = f"Clipped {self.clipped} of {self.calls} steps ({self.clipped / self.calls:.1%})"
        if self.nonfinite:
            text += f"; the gradient was NaN or infinite at {self.nonfinite}"
        last = self.steps[-1]
        return f"{text}; last norm {last.before:.3g}, threshold {last.threshold:.3g}, after {last.after:.3g}"


class Clipper(ABC):
    """Shortens gradients in place between backward() and the optimiser's step; call it with the parameters.

        clip = ClipNorm(1.0)
        loss.backward();  clip(model);  optimizer.step()

    nonfinite: what happens where a gradient holds NaN or Inf, which no threshold can mend:
        "raise" NonFiniteError that names the parameters; nothing is changed (the default).
        "skip"  sets every gradient to None, so that optimizer.step() moves nothing, nor its momentum.
        "leave" changes nothing and goes on, for a GradScaler, which skips such a step itself.
    In any case it is in the record, and no adaptive threshold learns from it.
    """

    def __init__(self, nonfinite: str = "raise", keep: int | None = None) -> None:
        if nonfinite not in NONFINITE:
            raise ConfigError(f"nonfinite must be one of {', '.join(NONFINITE)}; came {nonfinite!r}")
        if keep is not None and keep < 1:
            raise ConfigError(f"keep must be at least 1 step, or None for all; came {keep}")
        self.nonfinite = nonfinite
        self.record = ClipRecord(keep)

    def __call__(self, parameters: Parameters) -> ClipStep:
        """Clips the gradients that are there; those that are None are passed over."""
        parameters = once(parameters)
        given = named_gradients(parameters)
        norm = global_norm(list(given.values()))
        if math.isfinite(norm):
            step = self.clip([p for p in once(parameters, flat=True) if p.grad is not None], norm)
        else:
            step = self._broken(parameters, given, norm)
        self.record.add(step)
        return step

    @abstractmethod
    def clip(self, parameters: list[Tensor], norm: float) -> ClipStep:
        """Clips gradients that are finite, of this global norm."""

    def _broken(self, parameters: Parameters, given: dict[str, Tensor], norm: float) -> ClipStep:
        if self.nonfinite == "raise":
            raise NonFiniteError(broken_message(given))
        if self.nonfinite == "leave":
            return ClipStep(norm, math.inf, norm, "left")
        for p in once(parameters, flat=True):
            p.grad = None
        return ClipStep(norm, math.inf, 0.0, "skipped")

    def state_dict(self) -> dict[str, Any]:
        """What the clipper has learnt, as plain numbers and lists; the record is not part of it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` gave. Raises ConfigError for another clipper's."""
        if set(state) != set(self.state_dict()):
            raise ConfigError(
                f"this is not the state of a {type(self).__name__}: expected {sorted(self.state_dict())}, "
                f"came {sorted(state)}"
            )


class ClipNorm(Clipper):
    """Clipping by global norm: the same direction, a shorter step (Pascanu 2013).

        g <- g * min(1, max_norm / ||g||)

    By torch.nn.utils, of which it has the numbers, with one difference: a norm that overflows float32 although every
    gradient is finite is taken in float64 here; torch would set all gradients to 0.
    """

    def __init__(self, max_norm: float, *, nonfinite: str = "raise", keep: int | None = None) -> None:
        super().__init__(nonfinite, keep)
        self.max_norm = positive("max_norm", max_norm)

    def clip(self, parameters: list[Tensor], norm: float) -> ClipStep:
        return clip_to(parameters, norm, self.max_norm)


class ClipValue(Clipper):
    """Clipping by value: every element of the gradient is clamped to [-value, value] (Mikolov 2012).

    It turns the direction where it acts; a threshold such as 15 is usual. `threshold` in the record is the value,
    `before` and `after` are global norms.
    """

    def __init__(self, value: float, *, nonfinite: str = "raise", keep: int | None = None) -> None:
        super().__init__(nonfinite, keep)
        self.value = positive("value", value)

    def clip(self, parameters: list[Tensor], norm: float) -> ClipStep:
        grads = [p.grad for p in parameters if p.grad is not None]
        if not any(bool((g.abs() > self.value).any()) for g in grads):
            return ClipStep(norm, self.value, norm, "kept")
        clip_grad_value_(parameters, self.value)
        return ClipStep(norm, self.value, global_norm(grads), "clipped")


class ClipGroups:
    """A clipper for each group of parameters, each with its own norm, threshold and record.

        clip = ClipGroups({"recurrent": ClipNorm(1.0), "readout": ClipNorm(5.0)})
        clip({"recurrent": model.rnn, "readout": model.head})      # or clip(optimizer)

    An optimiser's groups are known by their "name", or else by their number: "0", "1", ...
    nonfinite: as in `Clipper`; looked at in all groups before any is changed, and acts on all of them: a step that is
    half right is not taken. Raises ConfigError where the groups are not those that have clippers.
    """

    def __init__(self, clippers: Mapping[str, Clipper], *, nonfinite: str = "raise") -> None:
        if not clippers:
            raise ConfigError("name at least one group and its clipper")
        if nonfinite not in NONFINITE:
            raise ConfigError(f"nonfinite must be one of {', '.join(NONFINITE)}; came {nonfinite!r}")
        self.clippers, self.nonfinite = dict(clippers), nonfinite

    def __call__(self, groups: Mapping[str, Parameters] | torch.optim.Optimizer) -> dict[str, ClipStep]:
        held = self._groups(groups)
        if held.keys() != self.clippers.keys():
            raise ConfigError(f"the groups are {sorted(held)}, there are clippers for {sorted(self.clippers)}")
        given = {f"{name}: {k}": g for name, ps in held.items() for k, g in named_gradients(ps).items()}
        if not all(_finite(g) for g in given.values()):
            if self.nonfinite == "raise":
                raise NonFiniteError(broken_message(given))
            return {name: self._broken(name, ps) for name, ps in held.items()}
        return {name: self.clippers[name](ps) for name, ps in held.items()}

    def _broken(self, name: str, parameters: Parameters) -> ClipStep:
        norm = global_norm(list(named_gradients(parameters).values()))
        if self.nonfinite == "skip":
            for p in once(parameters, flat=True):
                p.grad = None
            step = ClipStep(norm, math.inf, 0.0, "skipped")
        else:
            step = ClipStep(norm, math.inf, norm, "left")
        self.clippers[name].record.add(step)
        return step

    @staticmethod
    def _groups(groups: Mapping[str, Parameters] | torch.optim.Optimizer) -> dict[str, Parameters]:
        if isinstance(groups, torch.optim.Optimizer):
            return {str(g.get("name", n)): g["params"] for n, g in enumerate(groups.param_groups)}
        if not isinstance(groups, Mapping):
            raise ConfigError(
                f"expected the parameters of each group by name, a dict, or an optimiser; came {type(groups).__name__}"
            )
        return {name: once(ps) for name, ps in groups.items()}

    def state_dict(self) -> dict[str, Any]:
        """The states of the clippers, by group."""
        return {name: clipper.state_dict() for name, clipper in self.clippers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` gave. Raises ConfigError for other groups."""
        if set(state) != set(self.clippers):
            raise ConfigError(f"the state is of the groups {sorted(state)}, not of {sorted(self.clippers)}")
        for name, clipper in self.clippers.items():
            clipper.load_state_dict(state[name])


def clip_to(parameters: list[Tensor], norm: float, threshold: float) -> ClipStep:
    """Scales gradients of this global norm down to a threshold, as torch does: by threshold / (norm + 1e-6)."""
    if norm <= threshold:
        return ClipStep(norm, threshold, norm, "kept")
    total = torch.tensor(norm, dtype=parameters[0].grad.dtype)  # type: ignore[union-attr]
    if not total.isfinite():
        total = total.new_tensor(norm, dtype=torch.float64)
    clip_grads_with_norm_(parameters, threshold, total)
    return ClipStep(norm, threshold, norm * threshold / (norm + 1e-6), "clipped")


def global_norm(gradients: list[Tensor]) -> float:
    """||g|| over all gradients together; in float64 where their own dtype overflows though they are finite."""
    if not gradients:
        return 0.0
    norm = get_total_norm(gradients).item()
    if math.isfinite(norm) or not all(_finite(g) for g in gradients):
        return norm
    return math.hypot(*(_dense(g).norm(dtype=torch.float64).item() for g in gradients))


def named_gradients(parameters: Parameters) -> dict[str, Tensor]:
    """The gradients that are there, by the parameter's name, or its number where it has none."""
    if isinstance(parameters, nn.Module):
        return {name: p.grad for name, p in parameters.named_parameters() if p.grad is not None}
    return {f"parameter {n}": p.grad for n, p in enumerate(once(parameters)) if p.grad is not None}


def broken_message(gradients: Mapping[str, Tensor]) -> str:
    """Which gradients hold NaN or Inf, and what to do."""
    bad = [f"{name} (NaN)" if bool(g.isnan().any()) else name for name, g in gradients.items() if not _finite(g)]
    more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
    return (
        f"the gradient of {', '.join(bad[:5])}{more} is not finite, and clipping cannot mend it; nothing was changed. "
        'Skip this step (nonfinite="skip"), or look for where it began'
    )


def positive(name: str, value: float) -> float:
    """The value, if it is a threshold: a finite number above 0."""
    if not is_number(value) or not value > 0:
        raise ConfigError(f"{name} must be a finite number above 0; came {value!r}")
    return float(value)


def is_number(value: Any) -> bool:
    """Whether it is a finite number, numpy's among them, and no bool."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def once(parameters: Parameters, flat: bool = False) -> Any:
    """Parameters that can be walked more than once: a module stays one, unless `flat`; all else becomes a list."""
    if isinstance(parameters, nn.Module):
        return list(parameters.parameters()) if flat else parameters
    held = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    if not all(isinstance(p, Tensor) for p in held):
        raise ConfigError("expected a module or its parameters (model, or model.parameters())")
    return held


def _dense(g: Tensor) -> Tensor:
    return g.coalesce().values() if g.is_sparse else g


def _finite(g: Tensor) -> bool:
    return bool(_dense(g).isfinite().all())
