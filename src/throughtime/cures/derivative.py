"""Derivative clipping and the truncated gradient of 1997, switched on in a model; the clip at an output layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from throughtime.cells import Cell
from throughtime.cures.changes import Change, Changes
from throughtime.cures.clip import positive
from throughtime.engine.derive import derive
from throughtime.engine.rules import with_rule
from throughtime.engine.trace import trace
from throughtime.errors import ConfigError
from throughtime.nn.convert import convert
from throughtime.nn.layer import StackedLayer


def clip_derivative(model: nn.Module, bound: float | None = 10.0) -> Changes:
    """Switches derivative clipping on in every recurrent layer of `model`, inside the recurrence (Graves 2013).

        dL/dz_t <- clamp(dL/dz_t, -bound, bound)   at every step, on its way back through time

    z are the net inputs of the layer, before its sigmoids and tanhs; 10 is Graves' bound for LSTM layers. What is
    clipped at step t is what flows on to t-1, so that no product of Jacobians can explode; the result is not the
    gradient of any function. None switches it off again.

    torch's RNN, LSTM and GRU become ours (`throughtime.convert`: the same parameters and calls), for torch's cannot do
    it. Raises ConfigError for a model without such layers; loops over torch.nn.*Cell are named as left.
    """
    value = None if bound is None else positive("bound", bound)
    said = "not clipped" if value is None else f"derivative of the loss by the net inputs clipped to +-{value:g}"
    layers, left = _ours(model)
    for _, layer in layers:
        layer.clip = value
    return Changes("Derivative clipping", tuple(Change(name, said) for name, _ in layers), left)


def truncate_gradient(model: nn.Module, on: bool = True) -> Changes:
    """Switches the truncated gradient on in every recurrent layer of `model` (Hochreiter & Schmidhuber 1997).

    No error flows from a net input back into a state: it leaves a memory cell along the carousel only, at a cost that
    does not grow with time in the original. LSTMs and GRUs have such a path. on=False switches it off again.

    torch's layers become ours, as in `clip_derivative`. Raises ConfigError, before anything is changed, for a layer
    whose cell has no path but through the net inputs (a simple network): nothing would flow back at all.
    """
    if not isinstance(on, bool):
        raise ConfigError(f"on must be True or False; came {on!r}")
    for name, module in model.named_modules():
        mode = getattr(module, "mode", "") if isinstance(module, nn.RNNBase) else ""
        cell = module.step_cell() if isinstance(module, StackedLayer) else None
        if on and (mode in ("RNN_TANH", "RNN_RELU") or (cell is not None and not _has_carousel(cell))):
            raise ConfigError(
                f"{name or 'the model itself'} ({type(module).__name__}) carries its state through its net inputs "
                "only; with the truncated gradient nothing would flow back through time. Take an LSTM, or "
                "clip_derivative"
            )
    layers, left = _ours(model)
    for _, layer in layers:
        layer.truncated = on
    said = "error leaves the memory cell along the carousel only" if on else "full gradient"
    return Changes("Truncated gradient", tuple(Change(name, said) for name, _ in layers), left)


def _has_carousel(cell: Cell) -> bool:
    """Whether a gradient with respect to an old state is left when the net inputs send none back."""
    tape = with_rule(trace(cell), None, True)
    return any(out.kind == "s" for out in derive(tape).outputs)


def _ours(model: nn.Module) -> tuple[list[tuple[str, StackedLayer]], tuple[Change, ...]]:
    convert(model)
    layers = [(name or "the model itself", m) for name, m in model.named_modules() if isinstance(m, StackedLayer)]
    why = "a cell stepped by a loop of yours has no unrolled net inputs to clip; use a layer of throughtime.nn"
    left = tuple(Change(name, why) for name, m in model.named_modules() if isinstance(m, nn.RNNCellBase))
    if not layers:
        raise ConfigError(
            "there is no torch.nn.RNN, LSTM or GRU and no layer of throughtime.nn in this model"
            + (f"; {left[0].where}: {why}" if left else "")
        )
    for name, layer in layers:
        if layer.backend == "reference":
            raise ConfigError(f'{name} runs on backend="reference", which has no training rules; set it to "auto"')
    return layers, left


class _Clip(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, bound: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.bound = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g.clamp(-ctx.bound, ctx.bound), None


def clip_gradient(x: Tensor, bound: float = 100.0) -> Tensor:
    """x as it is; the gradient that comes back through it is clamped to [-bound, bound], element by element.

    At the net input of the output layer the bound of Graves 2013 is 100. NaN stays NaN.
    """
    return _Clip.apply(x, positive("bound", bound))


class ClipGradient(nn.Module):
    """`clip_gradient` as a module, to stand behind a layer: nn.Sequential(nn.Linear(H, K), ClipGradient(100.0))."""

    def __init__(self, bound: float = 100.0) -> None:
        super().__init__()
        self.bound = positive("bound", bound)

    def forward(self, x: Tensor) -> Tensor:
        return clip_gradient(x, self.bound)

    def extra_repr(self) -> str:
        return f"{self.bound:g}"


def clip_output(layer: nn.Module, bound: float = 100.0) -> RemovableHandle:
    """Clips the derivative of the loss by what `layer` returns: the net input of an output layer (Graves 2013).

        handle = clip_output(model.head)         # an nn.Linear; handle.remove() ends it

    A hook: the model keeps its structure and its numbers. Raises ConfigError where the layer returns no tensor.
    """
    positive("bound", bound)

    def hook(module: nn.Module, args: Any, out: Any) -> Tensor:
        if not isinstance(out, Tensor):
            raise ConfigError(
                f"{type(module).__name__} returns {type(out).__name__}, not a tensor; take the output layer, an "
                "nn.Linear, and clip_derivative for recurrent layers"
            )
        return clip_gradient(out, bound)

    return layer.register_forward_hook(hook)
