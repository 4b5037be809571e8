"""Whether what a checkpoint kept besides the weights fits the run: optimiser, carried state, place in the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from throughtime.train.model import SequenceModel

_KEPT = {torch.optim.Adam: {"step", "exp_avg", "exp_avg_sq"}, torch.optim.SGD: {"momentum_buffer"}}
_FARTHEST = 2**62


def take_optimiser(optimiser: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Put back what the optimiser kept for each weight; its options are those of the run's config.

    Raises ValueError (or KeyError, TypeError, AttributeError) for what is not of these weights.
    """
    optimiser.load_state_dict({"state": saved["state"], "param_groups": optimiser.state_dict()["param_groups"]})
    wanted = _KEPT[type(optimiser)]
    weights = {p for group in optimiser.param_groups for p in group["params"]}
    for weight, kept in optimiser.state.items():
        if weight not in weights or set(kept) != wanted:
            raise ValueError("the optimiser's state is of other weights, or not complete")
        for name, value in kept.items():
            shape = () if name == "step" else weight.shape
            if value is None and name == "momentum_buffer":
                continue
            if not isinstance(value, Tensor) or value.shape != shape or value.dtype != torch.float32:
                raise ValueError(f"the optimiser's {name} does not fit a weight of shape {list(weight.shape)}")


def check_state(model: SequenceModel, state: Any) -> None:
    """Raise ValueError (or TypeError, IndexError) unless the model can go on from this state, [layers, B, H] each."""
    if state is None:
        return
    parts = [state] if isinstance(state, Tensor) else state
    if not isinstance(parts, list | tuple) or not all(isinstance(s, Tensor) and s.ndim == 3 for s in parts):
        raise ValueError("the carried state is none")
    weight = next(model.parameters())
    x = weight.new_zeros(1, parts[0].shape[1], model.recurrent.input_size)
    with torch.no_grad():
        model.recurrent(x, state)


def place_in_data(position: Any) -> int:
    """The number of windows read so far; raises ValueError for what is none."""
    if not isinstance(position, int) or not 0 <= position < _FARTHEST:
        raise ValueError(f"{position!r} is no place in the data")
    return position
