"""convert(): turns torch's recurrent layers inside a model into ours, and back, in place."""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from throughtime import cells
from throughtime.cells import Cell
from throughtime.errors import BackendError, ConfigError
from throughtime.nn.family import FAMILY
from throughtime.nn.recurrent import Recurrent
from throughtime.nn.stack import check_rules
from throughtime.nn.torch_like import GRU, LSTM, RNN

_OURS: dict[type, type] = {nn.RNN: RNN, nn.LSTM: LSTM, nn.GRU: GRU}
_TORCHS: dict[type, type] = {ours: torchs for torchs, ours in _OURS.items()}
_STACKS: tuple[type, ...] = (Recurrent, *FAMILY)

M = TypeVar("M", bound=nn.Module)


def convert(
    model: M,
    to: str = "throughtime",
    *,
    clip: float | None = None,
    truncated: bool = False,
    backend: str = "auto",
    memory: str = "fast",
) -> M:
    """Turns every torch.nn.RNN, LSTM and GRU in `model` (which may be one itself) into ours, or back with to="torch".

    Each layer changes its class and stays the same object with the same Parameter objects: optimisers, hooks,
    training mode, device, dtype, and other places that hold the layer keep working. Layers of exactly these types
    are converted; subclasses of them, which may have a forward of their own, are left. clip, truncated, backend
    and memory are set on the layers that become ours (see `throughtime.engine.unroll`).

    to="torch" converts our RNN, LSTM and GRU, and `Recurrent` where torch has its cell. Layers that torch cannot
    express (another cell, skip connections, a training rule) are left in place with a warning that names them.

    Returns the model. Raises, before anything is changed, BackendError for a layer that is quantised, scripted,
    parametrised or weight-normed, or has its forward replaced, and for a `model` that is itself a recurrent layer
    and cannot be converted; ConfigError for options that make no sense.
    """
    if to not in ("throughtime", "torch"):
        raise ConfigError(f'to must be "throughtime" or "torch"; came {to!r}')
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be a torch.nn.Module; came {type(model).__name__}")
    rules = check_rules(clip, truncated, backend, memory)
    if to == "throughtime":
        for _, layer in _find(model, tuple(_OURS)):
            layer.__class__ = _OURS[type(layer)]
            layer.clip, layer.truncated, layer.backend, layer.memory = rules
        return model
    if rules != (None, False, "auto", "fast"):
        raise ConfigError('clip, truncated, backend and memory are rules of our layers; leave them out with to="torch"')
    left, plans = [], []
    for name, layer in _find(model, (*_TORCHS, *_STACKS)):
        why = _lacking(layer)
        if why is None:
            plans.append(layer)
        elif layer is model:
            raise BackendError(f"{_named(name, layer)} cannot become one of torch's: {why}")
        else:
            left.append(f"{_named(name, layer)}: {why}")
    for layer in plans:
        _to_torch(layer)
    if left:
        warnings.warn(f"left in place, for torch has no such layer: {'; '.join(left)}", stacklevel=2)
    return model


def _find(model: nn.Module, types: tuple[type, ...]) -> list[tuple[str, Any]]:
    """Every layer of exactly one of `types`, once, with its name. Refuses those that cannot be swapped."""
    found: list[tuple[str, Any]] = []
    for name, layer in model.named_modules():
        kind = type(layer)
        what, scripted = _named(name, layer), getattr(layer, "original_name", "")
        if kind in types:
            _check_plain(what, layer)
            found.append((name, layer))
        elif parametrize.is_parametrized(layer) and kind.__bases__[0] in types:
            raise BackendError(
                f"{what} is parametrised; remove that first with torch.nn.utils.parametrize.remove_parametrizations"
            )
        elif kind.__module__.startswith("torch.ao.nn") and kind.__name__ in ("RNN", "LSTM", "GRU"):
            raise BackendError(f"{what} is quantised ({kind.__module__}); convert the float model, before quantisation")
        elif isinstance(layer, torch.jit.ScriptModule) and scripted in ("RNN", "LSTM", "GRU"):
            raise BackendError(f"{what} is a scripted {scripted}; convert the model before torch.jit.script")
        elif layer is model and isinstance(layer, types):
            raise BackendError(
                f"{what} is a subclass of {', '.join(t.__name__ for t in types if isinstance(layer, t))}, with perhaps "
                "a forward of its own; only the exact types are converted"
            )
    return found


def _check_plain(what: str, layer: nn.Module) -> None:
    if "forward" in vars(layer):
        raise BackendError(f"{what} has its forward replaced (by a wrapper?); convert the model before that is done")
    computed = [n for n in getattr(layer, "_flat_weights_names", ()) if n not in layer._parameters]
    if computed:
        raise BackendError(
            f"{what} computes its {', '.join(computed)} from other parameters (weight_norm, pruning?); remove that "
            "first, with torch.nn.utils.remove_weight_norm or prune.remove"
        )


def _named(name: str, layer: nn.Module) -> str:
    return f"{name or 'the model itself'} ({type(layer).__name__})"


def _lacking(layer: Any) -> str | None:
    """What torch has not that this layer of ours needs; None if it has all."""
    if layer.clip is not None or layer.truncated:
        rule = f"clip={layer.clip}" if layer.clip is not None else "truncated=True"
        return f"it is trained with {rule}, which torch has not; set layer.clip = None, layer.truncated = False first"
    if isinstance(layer, Recurrent):
        if layer.skip and layer.num_layers > 1:
            return "torch has no skip connections"
        if _mode(layer.cell) is None:
            return f"torch has no layer with the cell {layer.cell!r}"
    return None


def _mode(cell: Cell) -> str | None:
    if type(cell) is cells.Simple and cell.activation in ("tanh", "relu"):
        return cell.activation
    kinds = {cells.LSTM: "LSTM", cells.ProjectedLSTM: "LSTM", cells.GRU: "GRU"}
    return kinds.get(type(cell))  # type: ignore[call-overload]


def _to_torch(layer: Any) -> None:
    own = {"clip", "truncated", "backend", "memory"}
    if isinstance(layer, Recurrent):
        own |= {"cell", "skip", "orthogonal"}
        pattern = _pattern(layer)
        for key, value in vars(pattern).items():
            vars(layer).setdefault(key, value)
        kind: type = type(pattern)
    else:
        kind = _TORCHS[type(layer)]
    for key in own:
        vars(layer).pop(key, None)
    layer.__class__ = kind
    layer._init_flat_weights()  # torch's list of the parameters, in one piece again where cuDNN wants them so


def _pattern(layer: Recurrent) -> nn.RNNBase:
    # Without storage and without dropout, at which torch would warn anew.
    mode = _mode(layer.cell)
    sizes = (layer.input_size, layer.hidden_size, layer.num_layers)
    rest = {"bias": layer.bias, "bidirectional": layer.bidirectional, "device": "meta"}
    if mode == "LSTM":
        return nn.LSTM(*sizes, proj_size=layer.proj_size, **rest)
    if mode == "GRU":
        return nn.GRU(*sizes, **rest)
    return nn.RNN(*sizes, nonlinearity=mode, **rest)
