"""explain(): which backend runs a model's recurrent layers, and why."""

from __future__ import annotations

import torch

from throughtime.engine.backends import check_memory, choose
from throughtime.engine.cpu import library
from throughtime.engine.operands import autocast_dtype
from throughtime.errors import ConfigError
from throughtime.nn.layer import StackedLayer

LOW = '; memory="low": what the forward pass did not keep is worked out anew, about sqrt(T) steps at a time'


def explain(module: torch.nn.Module) -> str:
    """One line for every recurrent layer of ours in `module`: its name, its cell, the backend that runs it, and why.

    As it stands now: with the layer's device, dtype and `backend`, a surrounding autocast, and the environment variable
    THROUGHTIME_BACKEND. Raises BackendError for a backend that a layer asks for and that cannot run it, ConfigError for
    what is not a module.
    """
    if not isinstance(module, torch.nn.Module):
        raise ConfigError(f"model must be a torch.nn.Module; came {type(module).__name__}")
    lines = []
    for name, layer in module.named_modules():
        if isinstance(layer, StackedLayer):
            weight = layer.layer_weights()[0][0].weight_ih
            low = autocast_dtype(weight.device.type) if weight.dtype != torch.float64 else None
            backend, why = choose(layer.backend, weight.device.type, weight.dtype, low or weight.dtype)
            check_memory(layer.memory, backend, why)
            line = f"{name or type(layer).__name__}: {layer.step_cell().name} runs on {backend!r}: {why}"
            lines.append(line + (LOW if layer.memory == "low" else "") + _without_tiles(backend, low))
        elif isinstance(layer, torch.nn.RNN | torch.nn.LSTM | torch.nn.GRU):
            lines.append(f"{name or type(layer).__name__}: torch's own layer; throughtime.convert(model) makes it ours")
    return "\n".join(lines) or "no recurrent layer of torch or throughtime in this module"


def _without_tiles(backend: str, products: torch.dtype | None) -> str:
    """What is said where products of bf16 numbers could run on the processor's tiles and do not."""
    reason = library.tiles_left_out() if backend == "cpu" and products == torch.bfloat16 else None
    return "" if reason is None else f"; its bfloat16 products run on {library.current()}, not on AMX tiles: {reason}"
