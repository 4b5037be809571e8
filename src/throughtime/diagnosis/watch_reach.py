"""Whether a backward pass reached the parameters of a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


class Reach:
    """Looks at the gradients before and after a backward pass; it runs in every step, and does as little as it can."""

    def __init__(self) -> None:
        self._parameters: list[nn.Parameter] = []
        self._had: list[Any] = []

    def look_at(self, parameters: Iterable[nn.Parameter]) -> None:
        """From here on it is these."""
        self._parameters = [p for p in parameters if p.requires_grad]
        self.begin()

    def begin(self) -> None:
        """A backward pass is about to begin."""
        self._had = [None if (g := p.grad) is None else (id(g), g._version) for p in self._parameters]

    def ended(self) -> bool:
        """Whether the pass that came to its end added to any gradient."""
        for p, had in zip(self._parameters, self._had, strict=True):
            g = p.grad
            if had is None:
                if g is not None:
                    return True
            elif g is None or (id(g), g._version) != had:
                return True
        return False
