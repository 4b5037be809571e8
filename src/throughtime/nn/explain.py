"""explain(): which backend runs a model's recurrent layers, and why."""

from __future__ import annotations

import torch

from throughtime.engine.backends import check_memory, choose
from throughtime.engine.operands import autocast_dtype
from throughtime.nn.layer import StackedLayer

LOW = '; memory="low": what the forward pass did not keep is worked out anew, about sqrt(T) steps at a time'


def explain(module: torch.nn.Module) -> str:
    """One line for every recurrent layer of ours in `module`: its name, its cell, the backend that runs it, and why.

    As it stands now: with the layer's device, dtype and `backend`, a surrounding autocast, and the environment variable
    THROUGHTIME_BACKEND. Raises BackendError for a backend that a layer asks for and that cannot run it.
    """
    lines = []
    for name, layer in module.named_modules():
        if isinstance(layer, StackedLayer):
            weight = layer.layer_weights()[0][0].weight_ih
            low = autocast_dtype(weight.device.type) if weight.dtype != torch.float64 else None
            backend, why = choose(layer.backend, weight.device.type, weight.dtype, low or weight.dtype)
            check_memory(layer.memory, backend, why)
            line = f"{name or type(layer).__name__}: {layer.step_cell().name} runs on {backend!r}: {why}"
            lines.append(line + (LOW if layer.memory == "low" else ""))
        elif isinstance(layer, torch.nn.RNN | torch.nn.LSTM | torch.nn.GRU):
            lines.append(f"{name or type(layer).__name__}: torch's own layer; throughtime.convert(model) makes it ours")
    return "\n".join(lines) or "no recurrent layer of torch or throughtime in this module"
