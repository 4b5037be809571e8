"""Skip connections: a stack rebuilt so that the input reaches every layer, and every layer the output."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from throughtime.diagnosis.parts import parts
from throughtime.errors import ConfigError
from throughtime.nn.layer import StackedLayer
from throughtime.nn.recurrent import Recurrent
from throughtime.nn.stack import Rules


class Skipped(NamedTuple):
    """What `skip_connections` built: the layer, and the head widened for its output (None if none was given)."""

    layer: Recurrent
    head: nn.Linear | None


@torch.no_grad()
def skip_connections(layer: nn.Module, head: nn.Linear | None = None) -> Skipped:
    """Rebuilds a stack with skip connections, and the output layer behind it, without changing what they compute.

        h^n_t = layer_n([x_t, h^{n-1}_t]),    y_t = [h^1_t, ..., h^N_t]           (Graves 2013)

        model.rnn, model.head = skip_connections(model.rnn, model.head)

    Every parameter is carried over. What is new, the weights from x_t into the upper layers and from the lower layers
    into the head, starts at 0: all states, and with the head all outputs, are number for number those from before, and
    training can use the new paths from the first step (their gradient is not 0). They shorten the way of the gradient
    in depth, not in time. y is [T, B, layers * dirs * P] now, so what stands behind the layer must be widened: `head`.

    layer: torch's RNN, LSTM, GRU or ours, of at least two layers; it is not changed. The parameters are copies: make
    the optimiser anew. Raises ConfigError for other modules, one layer, a layer that has skip connections, and a head
    that does not fit.
    """
    if not isinstance(layer, nn.RNNBase | StackedLayer):
        raise ConfigError(f"expected a recurrent layer of torch.nn or throughtime.nn; came {type(layer).__name__}")
    N = int(layer.num_layers)  # type: ignore[arg-type]
    if N < 2:
        raise ConfigError("the layer has one layer; skip connections pass by layers, and there is none to pass by")
    if getattr(layer, "skip", False):
        raise ConfigError("the layer has skip connections already")
    found = parts(layer)
    some = found[0].weights.weight_ih
    rules = {name: getattr(layer, name) for name in Rules._fields if hasattr(layer, name)}
    new = Recurrent(
        found[0].cell, int(layer.input_size), int(layer.hidden_size), N, bool(layer.bias), bool(layer.batch_first),  # type: ignore[arg-type]
        float(layer.dropout), bool(layer.bidirectional), True,  # type: ignore[arg-type]
        proj_size=int(getattr(layer, "proj_size", 0)), device=some.device, dtype=some.dtype, **rules,
    )  # fmt: skip
    new.train(layer.training)
    for old, fresh in zip(found, parts(new), strict=True):
        for kind, target in fresh.parameters.items():
            source = old.parameters[kind]
            if kind == "weight_ih" and old.layer:
                target.zero_()
                target[:, new.input_size :].copy_(source)  # x comes first
            else:
                target.copy_(source)
            target.requires_grad_(source.requires_grad)
    return Skipped(new, None if head is None else _widened(head, new))


def _widened(head: nn.Linear, layer: Recurrent) -> nn.Linear:
    last = (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)
    if type(head) is not nn.Linear or head.in_features != last:
        came = f"{head.in_features} inputs" if isinstance(head, nn.Linear) else type(head).__name__
        raise ConfigError(f"head must be the nn.Linear behind the layer, with its {last} outputs as input; came {came}")
    wide = nn.Linear(
        last * layer.num_layers, head.out_features, head.bias is not None, head.weight.device, head.weight.dtype
    )
    wide.weight.zero_()
    wide.weight[:, -last:].copy_(head.weight)
    wide.weight.requires_grad_(head.weight.requires_grad)
    if head.bias is not None:
        wide.bias.copy_(head.bias)
        wide.bias.requires_grad_(head.bias.requires_grad)
    return wide.train(head.training)
