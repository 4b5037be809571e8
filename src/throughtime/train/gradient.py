"""The gradient through time of a trained language model, on text that it did not learn from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from throughtime.errors import DataError
from throughtime.flow import GradientFlow, gradient_flow
from throughtime.train.data import Streams
from throughtime.train.model import LanguageModel


def text_flow(model: LanguageModel, streams: Streams, *, windows: int = 8, layer: int = -1) -> GradientFlow:
    """`throughtime.flow.gradient_flow` of one recurrent layer, over the first windows of a text, all streams together.

    The loss at each step is the cross-entropy of the next symbol, in nats, averaged over batch and steps. The state
    is carried from window to window, as in training; the gradient is followed inside each. The maps of several
    windows are taken together as those of a larger batch: their squares add up.

    The first window only brings the state to where it is in training. Raises DataError without a second one.
    """
    if len(streams) < 2:
        raise DataError(
            f"the gradient through time is measured from the second window of a text on; this one has {len(streams)}: "
            "lower the window, or keep more text for validation"
        )
    device = model.output.weight.device
    training = model.training
    model.eval()
    try:
        flows, state = [], None
        for index in range(min(windows + 1, len(streams))):
            x, targets = (v.to(device) for v in streams.window(index))
            with torch.no_grad():
                embedded = model.embedding(x)
            if state is not None:
                flows.append(gradient_flow(model.recurrent, embedded, _loss(model, targets), state, layer=layer))
            with torch.no_grad():
                state = model.recurrent(embedded, state)[1]
    finally:
        model.train(training)
    maps = {of: torch.stack([f.maps[of] for f in flows]).square().sum(0).sqrt() for of in flows[0].maps}
    return replace(flows[0], maps=maps)


def _loss(model: LanguageModel, targets: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda y: functional.cross_entropy(model.output(y).flatten(0, 1), targets.flatten())
