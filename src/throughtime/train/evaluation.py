"""How good a trained run is: on the part of its data that was kept for that, or on other data of the same kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from throughtime.errors import ConfigError, DataError
from throughtime.train import checkpoint as checkpoints
from throughtime.train.config import RunConfig
from throughtime.train.data import labels, notes, panel, series
from throughtime.train.data.batch import Source
from throughtime.train.data.prepare import prepare
from throughtime.train.data.schema import ForecastSchema, Schema, TextSchema
from throughtime.train.data.table import read_table
from throughtime.train.data.text import read_streams
from throughtime.train.kinds import ForecastConfig, LMConfig
from throughtime.train.loop import load_from
from throughtime.train.measures import measure
from throughtime.train.model import SequenceModel
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
    series: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """The measures of each series by its name, where a table has several."""

    def __str__(self) -> str:
        lines = [f"{name:32} {value:.4f}" for name, value in self.measures.items()]
        lines += [f"{name:32} {value:.4f}   (to compare with)" for name, value in self.references.items()]
        if self.series:
            names = list(next(iter(self.series.values())))
            lines += ["", f"{'series':20} " + " ".join(f"{name:>14.26}" for name in names)]
            for series, found in self.series.items():
                cells = (f"{found[name]:>{max(14, len(name[:26]))}.4f}" for name in names)
                lines.append(f"{series:20} " + " ".join(cells))
        return "\n".join([f"{self.checkpoint} on {self.on}", *lines])

    def plain(self) -> dict[str, Any]:
        """The same as numbers for JSON."""
        return {
            "checkpoint": self.checkpoint, "on": self.on, "measures": dict(self.measures),
            "references": dict(self.references),
            **({"series": {name: dict(found) for name, found in self.series.items()}} if self.series else {}),
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
        return Evaluation(name, str(data), measure(model, source), references, _each(run, model, place, ""))
    prepared = prepare(run.config, run.schema)
    run.check_data(prepared.sha256)
    part = part or ("test" if prepared.test is not None else "valid")
    found = prepared.test if part == "test" else prepared.valid
    if found is None:
        raise ConfigError(f"{run.path} kept no part of its data for {part}; name other data with --data")
    references = dict(prepared.references.get(part, {}))
    return Evaluation(name, part, measure(model, found), references, _each(run, model, "", part))


def _each(run: Run, model: SequenceModel, place: str, part: str) -> dict[str, dict[str, float]]:
    """What is measured of each series, where a table has several."""
    config, schema = run.config, run.schema
    if not isinstance(config, ForecastConfig) or not isinstance(schema, ForecastSchema) or not config.series:
        return {}
    found = panel.read_panel(read_table(Path(place or config.table)), config, schema)
    return {name: measure(model, source) for name, source in panel.each(found, config, schema, part)}


def _text(config: Any, schema: Any, place: str, part: str) -> tuple[Source, dict[str, float]]:
    assert isinstance(config, LMConfig) and isinstance(schema, TextSchema)
    return read_streams(replace(config, text=place), schema.vocabulary), {}


def _forecast(config: Any, schema: Any, place: str, part: str) -> tuple[Source, dict[str, float]]:
    source, references = (panel if config.series else series).whole(read_table(Path(place)), schema, config)
    return source, dict(references)


def _label(config: Any, schema: Any, place: str, part: str) -> tuple[Source, dict[str, float]]:
    return labels.whole(read_table(Path(place)), schema, config), {}


def _notes(config: Any, schema: Any, place: str, part: str) -> tuple[Source, dict[str, float]]:
    return notes.whole(Path(place), schema, config, part), {}


def _task(config: RunConfig, schema: Schema, place: str, part: str) -> tuple[Source, dict[str, float]]:
    raise DataError("a generated task has no files; its test part is drawn anew: leave out --data")


_OTHER = {"text": _text, "forecast": _forecast, "label": _label, "notes": _notes, "task": _task}
