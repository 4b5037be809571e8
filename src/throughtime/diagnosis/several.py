"""Several models that train together, watched as if they were one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


class Together(nn.Module):
    """Several models, each a part of it."""


def together(models: Sequence[nn.Module]) -> nn.Module:
    """Several models as one whose parts bear the names of their classes, those that come again with _2, _3, ..."""
    if len(models) == 1:
        return models[0]
    group = Together()
    for m in models:
        first = name = type(m).__name__
        number = 1
        while hasattr(group, name):
            number += 1
            name = f"{first}_{number}"
        group.add_module(name, m)
    return group


def name_of(model: nn.Module) -> str:
    """The class of a model, or those of several."""
    return " and ".join(n for n, _ in model.named_children()) if isinstance(model, Together) else type(model).__name__


def trains(model: nn.Module) -> bool:
    """Whether the model is in training mode, or one of several."""
    return any(m.training for m in model.children()) if isinstance(model, Together) else model.training
