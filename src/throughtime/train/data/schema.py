"""What the numbers that go into a model and come out of it mean: kept with the run, enough to use the model."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, cast

from throughtime.errors import ThroughtimeError
from throughtime.train import tasks
from throughtime.train.data.scaling import Scaling
from throughtime.train.data.vocabulary import Vocabulary
from throughtime.train.heads import Bernoullis, Head, Mixture, Softmax, Value
from throughtime.train.kinds import ForecastConfig, LabelConfig, LMConfig, RunConfig, TaskConfig


class Schema(ABC):
    """Of one kind of run."""

    kind: ClassVar[str]
    at_end: bool = False
    """Whether a sequence has one target, at its last step."""

    @property
    def symbols(self) -> int:
        """How many symbols there are where a step's input is one of them, else 0."""
        return 0

    @property
    def width(self) -> int:
        """Size of a step's input, where it is numbers."""
        return 0

    @property
    @abstractmethod
    def head(self) -> Head:
        """What the outputs mean."""

    @property
    @abstractmethod
    def unit(self) -> str:
        """What losses are measured in."""

    def measured(self, loss: float) -> float:
        """A mean loss of the head in `unit`."""
        return loss


@dataclass(frozen=True)
class TextSchema(Schema):
    """Symbols in, the next symbol out."""

    vocabulary: Vocabulary

    kind = "text"

    @property
    def symbols(self) -> int:
        return len(self.vocabulary)

    @property
    def head(self) -> Head:
        return Softmax(len(self.vocabulary))

    @property
    def unit(self) -> str:
        return f"bits per {self.vocabulary.kind.removesuffix('s')}"

    def measured(self, loss: float) -> float:
        return loss / math.log(2)


@dataclass(frozen=True)
class ForecastSchema(Schema):
    """Columns in, a density of the target for each step ahead out.

    For the lead k = 1 ... horizon the model's number is (y_{t+k} - base - offset[k]) / factor[k], where base is the
    last value known at t that lies a whole number of seasons before t + k, and 0 without a season.
    """

    inputs: Scaling
    target: str
    season: int
    components: int
    offset: tuple[float, ...]
    factor: tuple[float, ...]

    kind = "forecast"

    @property
    def width(self) -> int:
        return len(self.inputs.columns)

    @property
    def horizon(self) -> int:
        """Steps ahead."""
        return len(self.factor)

    @property
    def head(self) -> Mixture:
        return Mixture(self.horizon, self.components)

    @property
    def unit(self) -> str:
        return "nats per value"

    def measured(self, loss: float) -> float:
        """Of the density of the target in its own unit, not of the normalised one."""
        return loss + sum(map(math.log, self.factor)) / self.horizon


@dataclass(frozen=True)
class LabelSchema(Schema):
    """Characters or columns in, a label out."""

    vocabulary: Vocabulary | None
    inputs: Scaling | None
    labels: tuple[str, ...]
    at_end: bool

    kind = "label"

    @property
    def symbols(self) -> int:
        return len(self.vocabulary) if self.vocabulary else 0

    @property
    def width(self) -> int:
        return len(self.inputs.columns) if self.inputs else 0

    @property
    def head(self) -> Head:
        return Softmax(len(self.labels))

    @property
    def unit(self) -> str:
        return "nats per sequence" if self.at_end else "nats per step"


@dataclass(frozen=True)
class NotesSchema(Schema):
    """Which notes sound in, which will sound out."""

    notes: int

    kind = "notes"

    @property
    def width(self) -> int:
        return self.notes

    @property
    def head(self) -> Head:
        return Bernoullis(self.notes)

    @property
    def unit(self) -> str:
        return "nats per step"


@dataclass(frozen=True)
class TaskSchema(Schema):
    """A generated task."""

    task: str
    lag: int

    kind = "task"

    @property
    def rule(self) -> tasks.Task:
        """The task itself."""
        return tasks.by_name(self.task, self.lag)

    @property
    def width(self) -> int:
        return self.rule.inputs

    @property
    def head(self) -> Head:
        return Softmax(self.rule.outputs) if self.rule.kind == "classes" else Value()

    @property
    def unit(self) -> str:
        return "nats per scored step" if self.rule.kind == "classes" else "squared error"


def schema_to_plain(schema: Schema) -> dict[str, Any]:
    """The schema as it is saved in JSON."""
    return asdict(cast(Any, schema))  # every kind of schema is a dataclass


def schema_from_plain(config: RunConfig, content: Mapping[str, Any]) -> Schema:
    """The schema of a run that `schema_to_plain` gave; raises `ValueError` that says what is wrong with another."""
    try:
        schema = _MAKERS[config.kind](config, content)
        if schema.head.size < 1 or schema.symbols + schema.width < 1:
            raise ValueError("it describes nothing")
    except (KeyError, TypeError, AttributeError, OverflowError, ThroughtimeError) as error:
        raise ValueError(f"it does not fit config.json ({type(error).__name__}: {error})") from None
    return schema


def _text(config: RunConfig, content: Mapping[str, Any]) -> Schema:
    assert isinstance(config, LMConfig)
    vocabulary = _vocabulary(content["vocabulary"])
    if vocabulary.kind != config.symbols or not len(vocabulary):
        raise ValueError("it does not fit config.json")
    return TextSchema(vocabulary)


def _forecast(config: RunConfig, content: Mapping[str, Any]) -> Schema:
    assert isinstance(config, ForecastConfig)
    offset, factor = _floats(content["offset"]), _floats(content["factor"])
    if not len(offset) == len(factor) == config.horizon or not all(f > 0 for f in factor):
        raise ValueError("it does not fit config.json")
    return ForecastSchema(_scaling(content["inputs"]), config.target, config.season, config.components, offset, factor)


def _label(config: RunConfig, content: Mapping[str, Any]) -> Schema:
    assert isinstance(config, LabelConfig)
    vocabulary, inputs = content["vocabulary"], content["inputs"]
    if (vocabulary is None) == (inputs is None):
        raise ValueError("it does not fit config.json")
    labels = _strings(content["labels"])
    return LabelSchema(
        None if vocabulary is None else _vocabulary(vocabulary),
        None if inputs is None else _scaling(inputs),
        labels,
        config.per == "sequence",
    )


def _notes(config: RunConfig, content: Mapping[str, Any]) -> Schema:
    return NotesSchema(int(content["notes"]))


def _task(config: RunConfig, content: Mapping[str, Any]) -> Schema:
    assert isinstance(config, TaskConfig)
    return TaskSchema(config.task, config.lag)


_MAKERS = {"text": _text, "forecast": _forecast, "label": _label, "notes": _notes, "task": _task}


def _vocabulary(content: Mapping[str, Any]) -> Vocabulary:
    kind, characters = content["kind"], content["characters"]
    if kind not in ("bytes", "characters", "words") or not isinstance(characters, str):
        raise ValueError("its vocabulary is of no kind that there is")
    return Vocabulary(kind, characters, _strings(content["words"]))


def _scaling(content: Mapping[str, Any]) -> Scaling:
    scaling = Scaling(_strings(content["columns"]), _floats(content["mean"]), _floats(content["deviation"]))
    if not len(scaling.columns) == len(scaling.mean) == len(scaling.deviation) or not all(scaling.deviation):
        raise ValueError("its normalisation is not complete")
    return scaling


def _strings(content: Any) -> tuple[str, ...]:
    if not isinstance(content, list) or not all(isinstance(s, str) for s in content):
        raise ValueError("a list of names is none")
    return tuple(content)


def _floats(content: Any) -> tuple[float, ...]:
    if not isinstance(content, list) or not all(isinstance(v, int | float) and math.isfinite(v) for v in content):
        raise ValueError("a list of numbers is none")
    return tuple(map(float, content))
