"""The gradient through time of a trained model, on data that it did not learn from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from throughtime.errors import DataError
from throughtime.flow import GradientFlow, capture, gradient_flow
from throughtime.train.data import Streams
from throughtime.train.data.batch import Source
from throughtime.train.looked_at import look, mean_loss
from throughtime.train.model import LanguageModel, SequenceModel


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


def run_flow(model: SequenceModel, source: Source, *, batches: int = 2) -> GradientFlow:
    """The same for a model of any kind, of its last layer's forward direction, over some batches (`looked_at.look`) of
    as many steps as the longest of them, with the loss that it is trained on.

    Raises DataError where no target is in the data.
    """
    training = model.training
    model.eval()
    loss = mean_loss(model.schema)
    flows: list[GradientFlow] = []
    try:
        for seen in look(model, source, batches):
            args, targets = seen.pair(model.schema)
            with capture(model) as captured:
                loss(model(*args), targets).backward()
            flows.append([r for r in captured.recurrences if not r.reverse][-1].flow())
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)
    if not flows:
        raise DataError("the data have no target to measure a loss of; keep more for validation")
    T = max(f.steps for f in flows)
    flows = [f for f in flows if f.steps == T]
    maps = {of: torch.stack([f.maps[of] for f in flows]).square().sum(0).sqrt() for of in flows[0].maps}
    return replace(flows[0], maps=maps)
