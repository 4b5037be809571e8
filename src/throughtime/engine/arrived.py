"""What sending many gradients back through one pass gives, and how it is asked of a backend's kernels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Arrived(NamedTuple):
    """What arrived at each step from each loss step that was followed, rows as they were asked for.

    sizes:  ||dL_t/dz_k||, then ||dL_t/ds_k|| of each state, over the batch: [1 + S, rows, T] float64; or of each
            sequence by itself [1 + S, B, rows, T].
    dx:     dL_t/dx_k [rows, T, B, D] float64, or None.
    values: dL_t/dz_k [rows, T, B, C * H] and dL_t/ds_k of each state [rows, T, B, .] float64, or None.
    """

    sizes: Tensor
    dx: Tensor | None
    values: list[Tensor] | None


class Asked(NamedTuple):
    """What is sent back: see `Ready.send_back`."""

    loss_steps: Sequence[int]
    direct: Sequence[Tensor | None] | None
    above: Sequence[Tensor | None] | None
    want_dx: bool
    input_slope: Tensor | None
    want_values: bool
    each: bool


class Ready(ABC):
    """A pass made ready by a backend: the gradients of many losses can be sent back through it, side by side."""

    def send_back(
        self,
        loss_steps: Sequence[int],
        direct: Sequence[Tensor | None] | None,
        above: Sequence[Tensor | None] | None = None,
        *,
        want_dx: bool = False,
        input_slope: Tensor | None = None,
        want_values: bool = False,
        each: bool = False,
    ) -> Arrived:
        """Follows some loss steps t, each alone.

        direct: what enters each state at step t, [T, B, .]; only what stands at the loss steps counts.
        above:  what enters each state at every step from every row, [rows, T, B, .].
        input_slope: the derivative of the cell's map of x before W, [T, B, D].
        each:   the sizes of each sequence by itself.
        """
        return self._send(Asked(loss_steps, direct, above, want_dx, input_slope, want_values, each))

    @abstractmethod
    def _send(self, asked: Asked) -> Arrived:
        """What the backend's kernels do for it."""
