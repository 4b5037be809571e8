"""Models that read what they wrote: for each kind of run how a step is drawn, fed back, and what is told of it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from throughtime.errors import ConfigError, DataError
from throughtime.train.data.batch import Source
from throughtime.train.data.prepared import Prepared
from throughtime.train.data.schema import ForecastSchema, NotesSchema, Schema, TextSchema
from throughtime.train.data.sequences import Sequences
from throughtime.train.data.streams import Streams
from throughtime.train.forecasting import in_unit

MOST_PAIRS = 1_000_000
"""Symbols of the training text, at most, whose pairs are counted."""


class Loop(ABC):
    """Real stretches of S sequences, and what is needed to go on from them without the data.

    real: [T, S, ...], the steps as the model takes them.
    """

    units: dict[str, str]
    """Of what `tell` measures."""
    real: Tensor

    @abstractmethod
    def draw(self, outputs: Tensor, generator: Generator) -> Tensor:
        """The next step [S, ...] as the model takes it, drawn from what it says [S, size]; steps are in order."""

    @abstractmethod
    def tell(self, outputs: Tensor, before: Tensor, step: Tensor) -> dict[str, Tensor]:
        """[S] numbers each of a step: from what the model said [S, size], the step before and the step itself."""


class TextLoop(Loop):
    """Symbols.

    entropy: of the distribution that the model draws from, -sum p log2 p. pairs: -log2 q(symbol | the one before), q
    from counts in the training text, smoothed by the symbols' own frequencies: what a judge who has seen real text
    thinks of the symbol, whatever the model thinks.
    """

    units = {"entropy": "bits", "pairs": "bits"}

    def __init__(self, schema: TextSchema, part: Streams, train: Streams, steps: int, most: int) -> None:
        self.real = _stretches([part.inputs.flatten(0, 1)], steps, most).long()
        self.V = schema.symbols
        text = train.inputs.flatten()[:MOST_PAIRS].long()
        ones = torch.bincount(text, minlength=self.V).double()
        self.one = (ones + 1) / (ones + 1).sum()
        self.first = ones
        self.pair, self.count = (text[:-1] * self.V + text[1:]).unique(return_counts=True)

    def draw(self, outputs: Tensor, generator: Generator) -> Tensor:
        return torch.multinomial(outputs.double().softmax(-1), 1, generator=generator).squeeze(-1)

    def tell(self, outputs: Tensor, before: Tensor, step: Tensor) -> dict[str, Tensor]:
        log_p = outputs.double().log_softmax(-1)
        entropy = -(log_p.exp() * log_p).nan_to_num().sum(-1) / math.log(2)
        which = before * self.V + step
        at = torch.searchsorted(self.pair, which).clamp(max=len(self.pair) - 1)
        seen = torch.where(self.pair[at] == which, self.count[at], 0).double()
        q = (seen + 10 * self.one[step]) / (self.first[before] + 10)  # 10 imagined symbols behind each
        return {"entropy": entropy, "pairs": -q.log2()}


class NotesLoop(Loop):
    """Piano rolls. entropy: of the notes that the model draws from, summed. notes: how many sound."""

    units = {"entropy": "bits", "notes": "notes"}

    def __init__(self, schema: NotesSchema, part: Sequences, steps: int, most: int) -> None:
        self.real = _stretches(part.inputs, steps, most)

    def draw(self, outputs: Tensor, generator: Generator) -> Tensor:
        return torch.bernoulli(outputs.sigmoid(), generator=generator)

    def tell(self, outputs: Tensor, before: Tensor, step: Tensor) -> dict[str, Tensor]:
        p = outputs.double().sigmoid()
        each = torch.special.entr(p) + torch.special.entr(1 - p)
        return {"entropy": each.sum(-1) / math.log(2), "notes": step.double().sum(-1)}


class SeriesLoop(Loop):
    """A series forecast from itself alone. value, square: the series, normalised, and its square: level and spread."""

    units = {"spread": "deviations of the target", "value": "deviations", "square": "squared deviations"}

    def __init__(self, schema: ForecastSchema, part: Streams | Sequences, steps: int, most: int) -> None:
        if tuple(schema.inputs.columns) != (schema.target,):
            raise ConfigError(
                f"the model reads {', '.join(schema.inputs.columns)}, and forecasts {schema.target} alone: the loop "
                f"cannot be closed; train one with --inputs {schema.target}"
            )
        if schema.season:
            raise ConfigError("with --season the model reads differences, and the loop is not closed over them")
        self.schema = schema
        pieces = part.inputs if isinstance(part, Sequences) else [part.inputs.flatten(0, 1)]
        self.real = _stretches(pieces, steps, most)
        self.mean, self.deviation = schema.inputs.mean[0], schema.inputs.deviation[0]

    def _next(self, outputs: Tensor) -> Any:
        base = torch.zeros(self.schema.horizon, dtype=torch.float64)
        return in_unit(self.schema, outputs, base)

    def draw(self, outputs: Tensor, generator: Generator) -> Tensor:
        drawn = self._next(outputs).sample(generator)[..., :1]
        return ((drawn - self.mean) / self.deviation).float()

    def tell(self, outputs: Tensor, before: Tensor, step: Tensor) -> dict[str, Tensor]:
        density = self._next(outputs)
        middle = (density.quantile(0.9) - density.quantile(0.1))[..., 0] / self.deviation
        value = step.double().squeeze(-1)
        return {"spread": middle, "value": value, "square": value.square()}


def loop_of(schema: Schema, data: Prepared, part: Source, steps: int, most: int) -> Loop:
    """Real stretches of `steps` steps out of a part, `most` of them at most.

    Raises ConfigError for a kind of run that does not forecast its own inputs, DataError where the part is too short.
    """
    if isinstance(schema, TextSchema) and isinstance(part, Streams) and isinstance(data.train, Streams):
        return TextLoop(schema, part, data.train, steps, most)
    if isinstance(schema, NotesSchema) and isinstance(part, Sequences):
        return NotesLoop(schema, part, steps, most)
    if isinstance(schema, ForecastSchema) and isinstance(part, Streams | Sequences):
        return SeriesLoop(schema, part, steps, most)
    raise ConfigError(f"a run of the kind {schema.kind!r} does not predict its own inputs: there is no loop to close")


LEAST = 4
"""Stretches, below which a standard error says nothing."""


def _enough(count: int, what: str) -> None:
    if count < LEAST:
        raise DataError(
            f"the held-out part has {count} {what}, and {LEAST} are needed; lower --length or --context, or train a "
            "run with more data held out"
        )


def _stretches(pieces: Sequence[Tensor], steps: int, most: int) -> Tensor:
    """[steps, S, ...]: stretches that do not overlap, spread over all of the pieces."""
    begins = [(n, k * steps) for n, piece in enumerate(pieces) for k in range(len(piece) // steps)]
    _enough(len(begins), f"stretches of {steps} steps")
    chosen = torch.linspace(0, len(begins) - 1, min(most, len(begins))).long().tolist()
    return torch.stack([pieces[n][b : b + steps] for n, b in (begins[i] for i in chosen)], 1)
