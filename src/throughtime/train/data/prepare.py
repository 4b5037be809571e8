"""From the description of a run to its data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from throughtime.train.data import generated, labels, notes, panel, series
from throughtime.train.data.prepared import Prepared
from throughtime.train.data.schema import ForecastSchema, Schema, TextSchema
from throughtime.train.data.text import read_text
from throughtime.train.kinds import ForecastConfig, LMConfig, RunConfig


def prepare(config: RunConfig, schema: Schema | None = None) -> Prepared:
    """Read the data of a run; with the schema that it was begun with, their numbers mean what they meant then.

    Raises `DataError`.
    """
    return _OF_KIND[config.kind](config, schema)


def _text(config: LMConfig, schema: TextSchema | None) -> Prepared:
    text = read_text(config, schema.vocabulary if schema else None)
    return Prepared(TextSchema(text.vocabulary), text.train, text.valid, text.test, text.sha256)


def _forecast(config: ForecastConfig, schema: ForecastSchema | None) -> Prepared:
    return panel.prepare(config, schema) if config.series else series.prepare(config, schema)


_OF_KIND: dict[str, Callable[[Any, Any], Prepared]] = {
    "text": _text,
    "forecast": _forecast,
    "label": labels.prepare,
    "notes": notes.prepare,
    "task": generated.prepare,
}
