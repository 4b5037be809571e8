"""An optimiser as a recipe: made anew for a copy of the model, with the same groups, settings and state."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import LBFGS, SGD, Optimizer

from throughtime.errors import ConfigError

Given = Optimizer | float | Callable[..., Optimizer]


@dataclass(frozen=True)
class Recipe:
    """How to make the user's optimiser for another model.

    make:   called with the parameter groups.     groups: the parameters' names and the settings of each.
    known:  the shapes of all parameters of the model it was read from, by name.      state: by name, its own numbers.
    """

    make: Callable[..., Optimizer]
    groups: tuple[tuple[tuple[str, ...], dict[str, Any]], ...]
    known: Mapping[str, tuple[int, ...]]
    state: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    def build(self, model: nn.Module, factor: float = 1.0) -> Optimizer:
        """The optimiser for `model`, every learning rate times `factor`.

        A parameter of the same name and shape keeps its group and its state; a new one joins the group of another one
        of the same module, or else the first group; one that the user's optimiser left out stays out.
        """
        group_of = {name: n for n, (names, _) in enumerate(self.groups) for name in names}
        modules = {name.rpartition(".")[0]: n for name, n in group_of.items()}
        members: list[list[tuple[str, nn.Parameter]]] = [[] for _ in self.groups]
        for name, p in model.named_parameters():
            known = name in self.known
            if known and name not in group_of:
                continue
            members[group_of[name] if known else modules.get(name.rpartition(".")[0], 0)].append((name, p))
        made = []
        for found, (_, options) in zip(members, self.groups, strict=True):
            changed = {**options, "lr": options["lr"] * factor} if "lr" in options else dict(options)
            made.append({"params": [p for _, p in found], **changed})
        made = [g for g in made if g["params"]]
        if not made:
            raise ConfigError("no parameter of the changed model is in the optimiser; there is nothing to train")
        optimiser = self.make(made)
        if factor != 1.0:
            for group in optimiser.param_groups:
                if "initial_lr" in group:
                    group["initial_lr"] *= factor
        for found in members:
            for name, p in found:
                if name in self.state and tuple(p.shape) == self.known[name]:
                    optimiser.state[p] = copy.deepcopy(dict(self.state[name]))
        return optimiser


def recipe(model: nn.Module, optimiser: Given) -> Recipe:
    """Reads the recipe from the optimiser of this model, from the learning rate of plain SGD, or from a function that
    is called with the parameter groups (a class such as torch.optim.Adam, say).

    Raises ConfigError for what is none of these, an optimiser of another model, and one that calls a closure.
    """
    named = dict(model.named_parameters())
    known = {name: tuple(p.shape) for name, p in named.items()}
    if not known:
        raise ConfigError("the model has no parameters; there is nothing to train")
    if isinstance(optimiser, bool) or not (isinstance(optimiser, Optimizer | float | int) or callable(optimiser)):
        raise ConfigError(
            "optimiser must be the optimiser of this model, a learning rate (plain SGD), or what makes one from "
            f"parameters; came {type(optimiser).__name__}"
        )
    every = tuple(name for name, p in named.items() if p.requires_grad)
    if isinstance(optimiser, int | float):
        if not optimiser > 0:
            raise ConfigError(f"the learning rate must be above 0; came {optimiser}")
        return Recipe(SGD, ((every, {"lr": float(optimiser)}),), known)
    if not isinstance(optimiser, Optimizer):
        made = optimiser([{"params": [named[name] for name in every]}])
        if not isinstance(made, Optimizer):
            raise ConfigError(f"the function given as optimiser returned {type(made).__name__}, not an optimiser")
        optimiser = made
    if isinstance(optimiser, LBFGS):
        raise ConfigError("L-BFGS calls the loss itself, several times a step, and cannot be tried here; take another")
    names = {id(p): name for name, p in named.items()}
    groups, state = [], {}
    for group in optimiser.param_groups:
        strange = [p for p in group["params"] if id(p) not in names]
        if strange:
            raise ConfigError("the optimiser holds parameters that are not this model's; give the one of this model")
        own = tuple(names[id(p)] for p in group["params"])
        groups.append((own, {k: v for k, v in group.items() if k != "params"}))
        for p in group["params"]:
            if p in optimiser.state:
                state[names[id(p)]] = _kept(optimiser.state[p])
    return Recipe(type(optimiser), tuple(groups), known, state)


def _kept(state: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.detach().clone() if isinstance(v, torch.Tensor) else copy.deepcopy(v) for k, v in state.items()}
