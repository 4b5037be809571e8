"""One plant of the fault injection: how it is put into a step, and what is then true of it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from benchmarks.fault_kinds import B, D, Model, T
from benchmarks.fault_oracle import Spot, first_explosion
from torch import Tensor

NET_INPUTS = {"RNN": ("h",), "LSTM": ("i", "f", "g", "o"), "GRU": ("r", "u", "n")}


@dataclass
class Truth:
    """What the record must say; None for what is not asked."""

    cause: str
    direction: str | None
    module: str | None = None
    part: str | None = None
    t: int | None = None
    sample: int | None = None
    layer: int | None = None
    reverse: bool | None = None
    gate: str | None = None


class Planted:
    """One plant, about to be put into a step: what it will do, and what is then true."""

    def __init__(self, where: str, model: Model, draw: random.Random):
        self.where, self.model = where, model
        self.value = draw.choice((math.nan, math.inf, -math.inf))
        self.b = draw.randrange(B)
        self.t = draw.randrange(model.lengths[self.b])
        self.d = draw.randrange(D)
        self.name, self.weight = draw.choice(list(model.named_parameters()))
        self.place = draw.randrange(self.weight.numel())
        self.spot: Spot | None = None

    def put(self, x: Tensor, target: Tensor, mask: Tensor) -> Callable[[], None]:
        """Plants it; gives what takes it away again. x [T, B, D]; the loss is multiplied by mask [T, B, 1]."""
        if self.where == "input":
            x[self.t, self.b, self.d] = self.value
        elif self.where == "loss":
            mask[self.t, self.b] = self.value
        elif self.where == "gradient":
            self.model.hook = lambda g: self._spoilt(g, (self.t, self.b, 0))
            return lambda: setattr(self.model, "hook", None)
        elif self.where == "weight gradient":
            at = tuple(int(i) for i in torch.unravel_index(torch.tensor(self.place), self.weight.shape))
            return self.weight.register_hook(lambda g: self._spoilt(g, at)).remove
        elif self.where == "explosion":
            return self._explode(x, target)
        else:
            with torch.no_grad():
                self.weight.view(-1)[self.place] = self.value
        return lambda: None

    @torch.no_grad()
    def _explode(self, x: Tensor, target: Tensor) -> Callable[[], None]:
        # With nothing going in all states are 0, and every step back multiplies by a part of U.
        core = {n: p for n, p in self.model.named_parameters() if n.startswith("core.") and "weight_ih" not in n}
        kept = {n: p.detach().clone() for n, p in core.items()}
        x.zero_()
        for name, p in core.items():
            p.mul_(1e9 if "weight_hh" in name else 0.0)
        now = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        with torch.enable_grad():
            self.spot = first_explosion(self.model, now, x, target)

        @torch.no_grad()
        def remove() -> None:
            for name, p in core.items():
                p.copy_(kept[name])

        return remove

    def _spoilt(self, g: Tensor, at: tuple[int, ...]) -> Tensor:
        g = g.clone()
        g[at] = self.value
        return g

    @property
    def truth(self) -> Truth:
        """What a record of it must say."""
        if self.where == "input":
            return Truth("bad input", "forward", self.model.reads_input, "input", self.t, self.b)
        if self.where == "loss":
            return Truth("the loss itself", "backward", "Model", "output", self.t, self.b)
        if self.where == "gradient":
            return Truth("bad gradient", "backward", self.model.gives_output, "output", self.t, self.b)
        if self.where == "explosion":
            truth = Truth("exploded gradient", "backward", self.model.reads_input)
            if self.spot is None:
                raise AssertionError("by the equations the gradient does not explode")
            truth.t = self.spot.t
            if truth.module == "core.layer":
                truth.layer, truth.reverse = self.spot.layer, self.spot.reverse
            return truth
        owner, _, own = self.name.rpartition(".")
        if self.where == "weight gradient":
            return Truth("bad gradient", "backward", owner, own)
        base, _, suffix = own.rpartition("_l")
        t = None if owner == "head" else T - 1 if own.endswith("_reverse") else 0
        truth = Truth("bad parameter", "forward", owner, own, t, gate=self._gate(owner, base or own))
        if base and owner == "core.layer":
            truth.layer, truth.reverse = int(suffix[0]), own.endswith("_reverse")
        return truth

    def _gate(self, owner: str, base: str) -> str | None:
        if base not in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            return None
        module = self.model.get_submodule(owner)
        names = next((n for k, n in NET_INPUTS.items() if k in type(module).__name__), None)
        if names is None:
            cell = module.cell
            names = cell.gates if base.endswith("ih") else cell.recurrent_gates
        return names[self.place // (self.weight.numel() // self.weight.shape[0]) * len(names) // self.weight.shape[0]]
