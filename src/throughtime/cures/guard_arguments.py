"""What a guard may be given: the checks of its arguments, each with a message that says what to do."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import LBFGS, Optimizer

from throughtime.cures.clip import is_number
from throughtime.errors import ConfigError


def optimizers_of(model: Any, optimizer: Any) -> tuple[Optimizer, ...]:
    """The optimisers, one or several, as a tuple. Raises ConfigError for what the guard cannot look into."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"expected a torch.nn.Module and its optimizer; came {type(model).__name__}")
    found = (optimizer,) if isinstance(optimizer, Optimizer) else tuple(optimizer) if _many(optimizer) else ()
    if not found or not all(isinstance(o, Optimizer) for o in found):
        raise ConfigError(
            f"optimizer must be a torch.optim.Optimizer, or several; came {type(optimizer).__name__}. Of a wrapper "
            "give the optimiser inside it"
        )
    if any(isinstance(o, LBFGS) for o in found):
        raise ConfigError(
            "L-BFGS is not supported: it runs forward and backward many times within its step, where the guard "
            "cannot look between; guard a run of Adam or SGD, or check the loss yourself"
        )
    own = {id(p) for p in model.parameters()}
    held = [id(p) for o in found for group in o.param_groups for p in group["params"]]
    if own and held and own.isdisjoint(held):
        raise ConfigError(
            "the optimiser holds no parameter of this model: there would be nothing to guard; give the one that "
            "trains it"
        )
    return found


def stateful_of(*given: Any) -> list[Any]:
    """All that is to go back besides model and optimiser, each one or several or None, as one list."""
    found = [v for g in given if g is not None for v in (g if _many(g) else (g,))]
    for v in found:
        if not (hasattr(v, "state_dict") and hasattr(v, "load_state_dict")):
            raise ConfigError(
                f"{type(v).__name__} has no state_dict and load_state_dict, so that it cannot go back; for a plain "
                "loader use guard.batches(loader)"
            )
    return found


def check_cadence(every: Any, share: Any) -> None:
    """Whether a number of steps between snapshots, or a share of the time, makes sense."""
    if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
        raise ConfigError(f"every must be a whole number of steps between snapshots, or None; came {every!r}")
    if not is_number(share) or not 0 < share < 1:
        raise ConfigError(f"share must lie between 0 and 1, the part of the time for snapshots; came {share!r}")


def check_clip(clip: Any) -> None:
    """Whether a norm to clip at makes sense."""
    if clip is not None and not (is_number(clip) and clip > 0):
        raise ConfigError(f"clip must be a positive number, the largest norm of the gradient, or None; came {clip!r}")


def _many(value: Any) -> bool:
    return isinstance(value, list | tuple)
