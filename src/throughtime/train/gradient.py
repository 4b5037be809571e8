"""The gradient through time of a trained language model, on text that it did not learn from."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from throughtime.errors import DataError
from throughtime.flow import GradientFlow, gradient_flow
from throughtime.train.data import Streams
from throughtime.train.model import LanguageModel


def text_flow(model: LanguageModel, streams: Streams, *, batch: int = 16, layer: int = -1) -> GradientFlow:
    """`throughtime.flow.gradient_flow` of one recurrent layer, over one window of up to `batch` streams.

    The loss at each step is the cross-entropy of the next symbol, in nats, averaged over batch and steps. The state
    is carried in from the window before, as in training. Raises DataError without two windows to read.
    """
    if len(streams) < 2:
        raise DataError(
            f"the gradient through time is measured on the second window of a text; this one has {len(streams)} "
            "window(s): lower the window, or keep more text for validation"
        )
    device = model.output.weight.device
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            before, _ = streams.window(0)
            state = model(before[:, :batch].to(device))[1]
            x, targets = (v[:, :batch].to(device) for v in streams.window(1))
            embedded = model.embedding(x)

        def loss(y: Tensor) -> Tensor:
            return functional.cross_entropy(model.output(y).flatten(0, 1), targets.flatten())

        return gradient_flow(model.recurrent, embedded, loss, state, layer=layer)
    finally:
        model.train(training)
