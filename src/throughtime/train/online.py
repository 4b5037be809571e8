"""A trained model used one step at a time, as data come in; the state is carried."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from throughtime.errors import ConfigError, DataError
from throughtime.train.data.schema import ForecastSchema, LabelSchema, TextSchema
from throughtime.train.data.series import seasonal_naive
from throughtime.train.forecasting import in_unit
from throughtime.train.heads import Bernoullis, Softmax
from throughtime.train.mixture import GaussianMixture
from throughtime.train.model import SequenceModel


class Online:
    """Takes the steps of one sequence as they come, and says at each what the model makes of all so far.

        online = Online(load("runs/weather-lstm"))
        for row in source:
            density = online.step(row)

    model: any trained model; it must not be bidirectional, which would need the end first.
    A call costs one step of the network, however long the sequence already is.
    """

    def __init__(self, model: SequenceModel) -> None:
        if model.directions == 2:
            raise ConfigError("a bidirectional model reads a sequence from both ends and cannot be fed step by step")
        self.model = model.eval()
        self.reset()

    def reset(self) -> None:
        """Begin a new sequence: the state is zero again."""
        self.state: Any = None
        schema = self.model.schema
        self._past: deque[float] = deque(maxlen=schema.season + 1 if isinstance(schema, ForecastSchema) else 1)

    def step(self, x: str | int | Sequence[float] | Tensor) -> Any:
        """What the model says after one more step.

        x: a symbol of the vocabulary (or its number), or the raw numbers of the step, in the order of the columns that
        the model learned from: they are normalised here. Returned is, by the kind of run, the probability of each
        symbol, label or note [n], one number, or for a forecast a `GaussianMixture` [horizon] in the target's unit;
        before the first season is over None. Raises `DataError` for a step that is none.
        """
        given = self._given(x)
        if given is None:
            return None
        device = self.model.output.weight.device
        with torch.no_grad():
            outputs, self.state = self.model(given.to(device), self.state)
        return self._said(outputs[-1, 0].cpu())

    def _given(self, x: Any) -> Tensor | None:
        """The step as the model takes it, [1, 1] or [1, 1, D]."""
        schema = self.model.schema
        if schema.symbols:
            assert isinstance(schema, TextSchema | LabelSchema) and schema.vocabulary is not None
            number = schema.vocabulary.encode(x) if isinstance(x, str) else torch.as_tensor(x).reshape(-1)
            if number.is_floating_point() or len(number) != 1 or not 0 <= int(number[0]) < schema.symbols:
                raise DataError(f"a step is one symbol, or a number from 0 to {schema.symbols - 1}; came {x!r}")
            return number.long().view(1, 1)
        try:
            values = torch.as_tensor(x, dtype=torch.float64).reshape(-1)
        except (TypeError, ValueError, RuntimeError):
            raise DataError(f"a step is {schema.width} numbers; came {x!r}") from None
        if len(values) != schema.width or not bool(values.isfinite().all()):
            raise DataError(f"a step is {schema.width} finite numbers; came {values.tolist()}")
        if isinstance(schema, ForecastSchema):
            values = values.clone()
            place = schema.inputs.columns.index(schema.target)
            self._past.append(float(values[place]))
            if schema.season:
                if len(self._past) <= schema.season:
                    return None
                values[place] -= self._past[0]
        inputs = getattr(schema, "inputs", None)
        return (inputs(values) if inputs is not None else values.float()).view(1, 1, -1)

    def _said(self, outputs: Tensor) -> Tensor | GaussianMixture:
        schema = self.model.schema
        if isinstance(schema, ForecastSchema):
            past = torch.tensor(list(self._past), dtype=torch.float64)
            base = torch.zeros(schema.horizon, dtype=torch.float64)
            if schema.season:
                base = seasonal_naive(past, torch.tensor([len(past) - 1]), schema.horizon, schema.season)[0]
            return in_unit(schema, outputs, base)
        if isinstance(schema.head, Softmax):
            return outputs.softmax(-1)
        return outputs.sigmoid() if isinstance(schema.head, Bernoullis) else outputs
