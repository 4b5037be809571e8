"""How good a model is on data that it did not learn from: the mean loss, and what else fits its kind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.train.config import RunConfig
from throughtime.train.data.batch import Batch, Source
from throughtime.train.data.schema import ForecastSchema, NotesSchema, Schema, TaskSchema, TextSchema
from throughtime.train.heads import perplexity
from throughtime.train.model import SequenceModel
from throughtime.train.states import first_of
from throughtime.train.tasks import Sample

MIDDLE = 0.8
"""Of the probability, between the quantiles that coverage is measured with."""


def precise(config: RunConfig, device: torch.device) -> AbstractContextManager[Any]:
    """Around a forward pass: autocast, where the run asks for it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


def run_batch(model: SequenceModel, batch: Batch, state: Any, through: nn.Module | None = None) -> tuple[Tensor, Any]:
    """Outputs of a batch on the model's device, and the states behind it; `state` is that behind the batch before.

    through: what is called in the model's place, such as the same model in several processes.
    """
    state = first_of(state, batch.inputs.shape[1]) if batch.carried else None
    with precise(model.config, batch.inputs.device):
        return (through or model)(batch.inputs, state, batch.lengths)


def total_loss(schema: Schema, outputs: Tensor, batch: Batch) -> Tensor:
    """The sum of the losses of all targets that count; a scalar."""
    loss = schema.head.loss(outputs, batch.targets)
    return loss.sum() if batch.scored is None else loss[batch.scored].sum()


def validate(model: SequenceModel, source: Source, windows: int, add: Callable[[float], float] = float) -> float:
    """Mean loss over the first `windows` windows, in the schema's unit, the state carried, without dropout.

    add: sums up what several processes, each with its share of the source, come to.
    """
    return _walk(model, source, windows, None, add)


def measure(model: SequenceModel, source: Source) -> dict[str, float]:
    """All that can be said of a model on a whole part, by name, the mean loss under the name of its unit first."""
    meter = _METERS.get(model.schema.kind, Meter)(model.schema)
    loss = _walk(model, source, len(source), meter)
    return {model.schema.unit: loss, **meter.result(loss)}


def _walk(
    model: SequenceModel, source: Source, windows: int, meter: Meter | None, add: Callable[[float], float] = float
) -> float:
    device = model.output.weight.device
    training = model.training
    total, count, state, index = 0.0, 0, None, 0
    model.eval()
    try:
        with torch.no_grad():
            while index < min(windows, len(source)) or (not count and index < len(source)):
                batch = source.batch(index).to(device)
                outputs, state = run_batch(model, batch, state)
                total += float(total_loss(model.schema, outputs, batch))
                count += batch.total
                index += 1
                if meter:
                    meter.add(outputs, batch)
    finally:
        model.train(training)
    return model.schema.measured(add(total) / max(count, 1))


class Meter:
    """Adds up, batch by batch, what is measured beside the loss: here the part of the classes that is guessed right."""

    def __init__(self, schema: Any) -> None:
        self.schema = schema
        self.right, self.count = 0.0, 0

    def add(self, outputs: Tensor, batch: Batch) -> None:
        """Take in a batch."""
        right = outputs.argmax(-1) == batch.targets
        self.right += float((right if batch.scored is None else right[batch.scored]).sum())
        self.count += batch.count

    def result(self, loss: float) -> dict[str, float]:
        """The measures by name."""
        return {"accuracy": self.right / max(self.count, 1)}


class TextMeter(Meter):
    """Perplexity and accuracy."""

    schema: TextSchema

    def result(self, loss: float) -> dict[str, float]:
        nats = loss / self.schema.measured(1.0)
        return {"perplexity": perplexity(nats), **super().result(loss)}


class NotesMeter(Meter):
    """Accuracy of the notes: right ones, over all that sound or were said to (Bay, Ehmann & Downie 2009)."""

    schema: NotesSchema

    def add(self, outputs: Tensor, batch: Batch) -> None:
        said, sound = outputs > 0, batch.targets > 0
        if batch.scored is not None:
            said, sound = said[batch.scored], sound[batch.scored]
        self.right += float((said & sound).sum())
        self.count += int((said | sound).sum())


class ForecastMeter(Meter):
    """CRPS, error of the median, root mean square error of the mean, in the target's unit; coverage."""

    schema: ForecastSchema

    def __init__(self, schema: ForecastSchema) -> None:
        super().__init__(schema)
        self.sums = dict.fromkeys(("crps", "mae of the median", "square", "covered"), 0.0)

    def add(self, outputs: Tensor, batch: Batch) -> None:
        density, y = self.schema.head.distribution(outputs).to(torch.float64), batch.targets.double().cpu()
        factor = torch.tensor(self.schema.factor, dtype=torch.float64)
        low, middle, high = (density.quantile(p) for p in ((1 - MIDDLE) / 2, 0.5, (1 + MIDDLE) / 2))
        each = {
            "crps": density.crps(y) * factor,
            "mae of the median": (y - middle).abs() * factor,
            "square": ((y - density.expectation()) * factor).square(),
            "covered": ((low <= y) & (y <= high)).double(),
        }
        for name, values in each.items():
            self.sums[name] += float((values if batch.scored is None else values[batch.scored.cpu()]).mean(-1).sum())
        self.count += batch.count

    def result(self, loss: float) -> dict[str, float]:
        mean = {name: total / max(self.count, 1) for name, total in self.sums.items()}
        return {
            "crps": mean["crps"],
            "mae of the median": mean["mae of the median"],
            "rmse of the mean": mean["square"] ** 0.5,
            f"coverage of the middle {MIDDLE:.0%}": mean["covered"],
        }


class TaskMeter(Meter):
    """The part of the sequences in which every scored step is right."""

    schema: TaskSchema

    def __init__(self, schema: TaskSchema) -> None:
        super().__init__(schema)
        self.open: Tensor | None = None  # of the sequences that may go on in the next window

    def add(self, outputs: Tensor, batch: Batch) -> None:
        scored = batch.scored if batch.scored is not None else torch.ones_like(batch.targets, dtype=torch.bool)
        sample = Sample(batch.inputs, batch.targets, scored, batch.lengths, batch.allowed)
        right = self.schema.rule.right(outputs.float(), sample)
        if batch.carried and self.open is not None:
            right = right & self.open
        else:
            self._close()
        self.open = right

    def _close(self) -> None:
        if self.open is not None:
            self.right += float(self.open.sum())
            self.count += len(self.open)
        self.open = None

    def result(self, loss: float) -> dict[str, float]:
        self._close()
        return {"sequences right": self.right / max(self.count, 1)}


_METERS: dict[str, type[Meter]] = {
    "text": TextMeter, "notes": NotesMeter, "forecast": ForecastMeter, "task": TaskMeter
}  # fmt: skip
