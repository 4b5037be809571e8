"""How good a trained run is: on the part of its data that was kept for that, or on other data of the same kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from throughtime.errors import ConfigError, DataError
from throughtime.train import checkpoint as checkpoints
from throughtime.train.config import RunConfig
from throughtime.train.data import labels, notes, series
from throughtime.train.data.batch import Source
from throughtime.train.data.prepare import prepare
from throughtime.train.data.schema import Schema, TextSchema
from throughtime.train.data.table import read_table
from throughtime.train.data.text import read_streams
from throughtime.train.kinds import LMConfig
from throughtime.train.loop import load_from
from throughtime.train.measures import measure
from throughtime.train.rundir import Run

_PARTS = ("valid", "test")


@dataclass(frozen=True)
class Evaluation:
    """What was measured, by name, the mean loss first; and what simple rivals reach on the same data."""

    checkpoint: str
    on: str
    """The part of the run's data, or the file."""
    measures: Mapping[str, float]
    references: Mapping[str, float]

    def __str__(self) -> str:
        lines = [f"{name:32} {value:.4f}" for name, value in self.measures.items()]
        lines += [f"{name:32} {value:.4f}   (to compare with)" for name, value in self.references.items()]
        return "\n".join([f"{self.checkpoint} on {self.on}", *lines])

    def plain(self) -> dict[str, Any]:
        """The same as numbers for JSON."""
        return {
            "checkpoint": self.checkpoint, "on": self.on, "measures": dict(self.measures),
            "references": dict(self.references),
        }  # fmt: skip


def evaluate(
    run_dir: str | Path, *, part: str = "", data: str | Path | None = None, checkpoint: str = "best"
) -> Evaluation:
    """Measure a checkpoint of a run on data that it did not learn from.

    part: "valid" or "test"; without it, the test part where the run has one, else the validation part.
    data: another file of the same kind instead, all of it; of a numpy archive the part named, or its test part.
    checkpoint: best, last, or a name such as step-000200.
    Raises `CheckpointError`, `DataError`, `ConfigError` for a part that the run does not have.
    """
    if part not in ("", *_PARTS):
        raise ConfigError(f"part must be valid or test, got {part!r}")
    run = Run.open(Path(run_dir))
    model = load_from(run, checkpoint)
    name = checkpoints.find(run.checkpoints, checkpoint).name
    if data is not None:
        place = str(Path(data).absolute())
        source, references = _OTHER[run.config.kind](run.config, run.schema, place, part or "test")
        return Evaluation(name, str(data), measure(model, source), references)
    prepared = prepare(run.config, run.schema)
    run.check_data(prepared.sha256)
    part = part or ("test" if prepared.test is not None else "valid")
    found = prepared.test if part == "test" else prepared.valid
    if found is None:
        raise ConfigError(f"{run.path} kept no part of its data for {part}; name other data with --data")
    return Evaluation(name, part, measure(model, found), dict(prepared.references.get(part, {})))


def _text(config: Any, schema: Any, place: str, part: str) -> tuple[Source, dict[str, float]]:
    assert isinstance(config, LMConfig) and isinstance(schema, TextSchema)
    return read_streams(replace(config, text=place), schema.vocabulary), {}


def _forecast(config: Any, schema: Any, place: str, part: str) -> tuple[Source, dict[str, float]]:
    return series.whole(read_table(Path(place)), schema, config)


def _label(config: Any, schema: Any, place: str, part: str) -> tuple[Source, dict[str, float]]:
    return labels.whole(read_table(Path(place)), schema, config), {}


def _notes(config: Any, schema: Any, place: str, part: str) -> tuple[Source, dict[str, float]]:
    return notes.whole(Path(place), schema, config, part), {}


def _task(config: RunConfig, schema: Schema, place: str, part: str) -> tuple[Source, dict[str, float]]:
    raise DataError("a generated task has no files; its test part is drawn anew: leave out --data")


_OTHER = {"text": _text, "forecast": _forecast, "label": _label, "notes": _notes, "task": _task}
