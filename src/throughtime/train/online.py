"""A trained model used one step at a time, as data come in; the state is carried."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from throughtime.errors import ConfigError, DataError
from throughtime.nn.stepper import Stepper
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
        """Begin a new sequence: the state is zero again. The weights are those that the model has now."""
        schema = self.model.schema
        self._state: Any = None
        self._stepper = _stepper(self.model)
        self._past: deque[float] = deque(maxlen=schema.season + 1 if isinstance(schema, ForecastSchema) else 1)

    @property
    def state(self) -> Any:
        """The state of the recurrent layers, as their call gives it; None before the first step."""
        return self._state if self._stepper is None else self._stepper.state

    def step(self, x: str | int | Sequence[float] | Tensor) -> Any:
        """What the model says after one more step.

        x: a symbol of the vocabulary (or its number), or the raw numbers of the step, in the order of the columns that
        the model learned from: they are normalised here. Returned is, by the kind of run, the probability of each
        symbol, label or note [n], one number, or for a forecast a `GaussianMixture` [horizon] in the target's unit;
        before the first season is over None. Raises `DataError` for a step that is none.
        """
        given = self._number(x) if self.model.schema.symbols else self._numbers(x)
        if given is None:
            return None
        if self._stepper is not None:
            return self._said(self._stepper(given))
        x_t = torch.tensor([[given]]) if isinstance(given, int) else given.view(1, 1, -1)
        with torch.no_grad():
            outputs, self._state = self.model(x_t.to(self.model.output.weight.device), self._state)
        return self._said(outputs[-1, 0].cpu())

    def _number(self, x: Any) -> int:
        """The number of a symbol."""
        schema = self.model.schema
        assert isinstance(schema, TextSchema | LabelSchema) and schema.vocabulary is not None
        number = schema.vocabulary.number(x) if isinstance(x, str) else x if type(x) is int else None
        if number is None:
            try:
                numbers = schema.vocabulary.encode(x) if isinstance(x, str) else torch.as_tensor(x).reshape(-1)
            except (TypeError, ValueError, RuntimeError):
                numbers = torch.empty(0)
            number = int(numbers[0]) if len(numbers) == 1 and not numbers.is_floating_point() else -1
        if not 0 <= number < schema.symbols:
            raise DataError(f"a step is one symbol, or a number from 0 to {schema.symbols - 1}; came {x!r}")
        return number

    def _numbers(self, x: Any) -> Tensor | None:
        """The step [D] as the model takes it."""
        schema = self.model.schema
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
        return inputs(values) if inputs is not None else values.float()

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


def _stepper(model: SequenceModel) -> _Ready | None:
    """The model's own call without what a call of one step would spend most of its time on; None where it cannot be."""
    stepper = Stepper.of(model.recurrent)
    plain = type(model.embedding) in (nn.Embedding, nn.Linear, nn.Identity) and type(model.output) is nn.Linear
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    return None if stepper is None or not plain or hooked or stepper.dtype != torch.float32 else _Ready(model, stepper)


class _Ready:
    """A model's weights by themselves: the embedding, the layers made ready, the output."""

    def __init__(self, model: SequenceModel, stepper: Stepper) -> None:
        self.stepper = stepper
        embedding = model.embedding
        self.rows = embedding.weight.detach() if isinstance(embedding, nn.Embedding) else None
        self.linear = (embedding.weight.detach(), embedding.bias.detach()) if isinstance(embedding, nn.Linear) else None
        self.weight, self.bias = model.output.weight.detach(), model.output.bias.detach()

    @property
    def state(self) -> Any:
        return self.stepper.state

    def __call__(self, given: Any) -> Tensor:
        """The outputs [size] after one more step: the number of a symbol, or numbers [D]."""
        if self.rows is not None:
            e = self.rows[given]
        else:
            e = given if self.linear is None else functional.linear(given, *self.linear)
        return functional.linear(self.stepper(e), self.weight, self.bias)
