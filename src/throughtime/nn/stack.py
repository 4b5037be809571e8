"""Layers over layers, in one direction or two: the one loop behind every module of this folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from throughtime.cells import Cell
from throughtime.engine import unroll
from throughtime.engine.backends import NAMES, check_memory
from throughtime.engine.rows import unroll_rows
from throughtime.errors import BackendError, ConfigError
from throughtime.nn.layout import Layout


class Weights(NamedTuple):
    """The weights of one layer in one direction, as `unroll` takes them."""

    weight_ih: Tensor
    weight_hh: Tensor | None
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    units: tuple[Tensor, ...]
    matrices: tuple[Tensor, ...]


class Rules(NamedTuple):
    """How a layer is trained and run; see `throughtime.engine.unroll`."""

    clip: float | None
    truncated: bool
    backend: str
    memory: str


class Result(NamedTuple):
    """What a stack gives back.

    output:    [T, B, dirs * P] of the last layer, or of all layers side by side with skip connections.
    finals:    the last states, each [layers * dirs, B, .], in torch's order: layer by layer, forward then reverse.
    sequences: for each layer and direction, in the same order, its states at every step, each [T, B, .]; those
               beyond the first may be empty unless every state was asked for.
    """

    output: Tensor
    finals: tuple[Tensor, ...]
    sequences: list[tuple[Tensor, ...]]


def check_rules(clip: float | None, truncated: bool, backend: str, memory: str) -> Rules:
    """The rules as one value; raises ConfigError or BackendError for those that `unroll` would refuse."""
    if isinstance(clip, bool) or (clip is not None and not (clip > 0 and math.isfinite(clip))):
        raise ConfigError(f"clip must be a positive number, the bound of the derivative, or None; came {clip}")
    if not isinstance(truncated, bool):
        raise ConfigError(f"truncated must be True or False; came {truncated!r}")
    if backend not in NAMES:
        raise BackendError(f"unknown backend {backend!r}; it must be one of {', '.join(NAMES)}")
    check_memory(memory, backend, "it was asked for")
    return Rules(clip, truncated, backend, memory)


def run_stack(
    cell: Cell,
    layers: Sequence[Sequence[Weights]],
    x: Tensor,
    states: Sequence[Tensor] | None,
    layout: Layout,
    *,
    dropout: float,
    skip: bool,
    rules: Rules,
    every_state: bool = True,
) -> Result:
    """Runs x [T, B, D] through `layers`, each a list of one set of weights a direction; or packed rows [rows, D].

    states: the initial states, each [layers * dirs, B, .]; None for zeros. dropout: the probability with which an
    element of a layer's output is left out on its way to the layer above; 0 outside training. skip: the input
    goes to every layer and every layer's output to the output (Graves 2013). every_state: see `Result.sequences`.
    """
    below = x
    outputs: list[Tensor] = []
    sequences: list[tuple[Tensor, ...]] = []
    finals: list[tuple[Tensor, ...]] = []
    for number, directions in enumerate(layers):
        if number:
            below = layout.dropout(outputs[-1], dropout)
            if skip:
                below = torch.cat([x.to(below.dtype), below], -1)
        for reverse, w in enumerate(directions):
            first = None if states is None else [s[len(finals)] for s in states]
            if layout.packed is not None and layout.rows:
                y, last = unroll_rows(
                    cell, below, layout.packed.batch_sizes, w.weight_ih, w.weight_hh, w.bias_ih, w.bias_hh,
                    units=w.units, matrices=w.matrices, states=first, reverse=bool(reverse), clip=rules.clip,
                    truncated=rules.truncated,
                )  # fmt: skip
                shown: tuple[Tensor, ...] = (y,)
            else:
                shown, last = unroll(
                    cell, below, w.weight_ih, w.weight_hh, w.bias_ih, w.bias_hh, units=w.units, matrices=w.matrices,
                    states=first, lengths=layout.lengths, reverse=bool(reverse), clip=rules.clip,
                    truncated=rules.truncated, memory=rules.memory, backend=rules.backend, every_state=every_state,
                )  # fmt: skip
            sequences.append(shown)
            finals.append(last)
        here = [shown[0] for shown in sequences[-len(directions) :]]
        outputs.append(here[0] if len(here) == 1 else torch.cat(here, -1))
    output = torch.cat(outputs, -1) if skip and len(outputs) > 1 else outputs[-1]
    if len(finals) == 1:
        return Result(output, tuple(s.unsqueeze(0) for s in finals[0]), sequences)
    return Result(output, tuple(map(torch.stack, zip(*finals, strict=True))), sequences)
