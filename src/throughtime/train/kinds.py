"""The kinds of runs: text, a series to forecast, sequences with labels, piano rolls, generated tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal

from throughtime.errors import ConfigError
from throughtime.train.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class LMConfig(RunConfig):
    """A language model: each next symbol of a text, from all before it."""

    kind: ClassVar[str] = "text"
    source: ClassVar[str] = "text"
    least: ClassVar[Mapping[str, int]] = {**RunConfig.least, "embedding": 1, "words": 2}

    text: str = field(kw_only=False)
    """The text file to learn from, or a folder: then all files in it, by name, a newline between two."""
    symbols: Literal["characters", "bytes", "words"] = "characters"
    """What the model reads and predicts: the characters of UTF-8 text, its words, or the bytes of any file."""
    words: int = 20000
    """With --symbols words: so many are known, the commonest; all others are one symbol, <unk>."""
    column: str = ""
    """Where the text is a dataset that Hugging Face's `datasets` saved: the column with the text."""
    embedding: int = 64
    """Size of the vector that stands for a symbol."""


@dataclass(frozen=True, kw_only=True)
class ForecastConfig(RunConfig):
    """Forecast one column of a table, from all columns so far: a density for each of the next --horizon steps."""

    kind: ClassVar[str] = "forecast"
    source: ClassVar[str] = "table"
    least: ClassVar[Mapping[str, int]] = {**RunConfig.least, "horizon": 1, "season": 0, "components": 1}

    table: str = field(kw_only=False)
    """The CSV or Parquet file: a header, then a row for each step, in the order of time."""
    target: str = field(kw_only=False)
    """The column to forecast."""
    horizon: int = 1
    """How many steps ahead."""
    inputs: str = ""
    """The columns to learn from, with commas between; without it, all columns of numbers."""
    series: str = ""
    """Where one table has several series: the column that says which one a row belongs to. Each goes on by itself."""
    season: int = 0
    """Steps of a season: forecast is then the deviation from the value last seen at that place of the season (1: from
    the last value); 0 forecasts the value itself."""
    components: int = 1
    """Gaussians in the density of each step ahead; more than 1 make it a mixture."""
    hidden: int = 32
    """Hidden units in each recurrent layer."""
    window: int = 24
    """Steps of truncated BPTT: the state is carried on from window to window, the gradient is cut."""
    batch: int = 2
    """Pieces that the series is cut into, to be read side by side; with --series, series that are."""
    valid_fraction: float = 0.2
    """Part of the series, towards its end, that is kept for validation; 0 for no validation."""


@dataclass(frozen=True, kw_only=True)
class LabelConfig(RunConfig):
    """Label sequences, or each of their steps, from the rows of a table."""

    kind: ClassVar[str] = "label"
    source: ClassVar[str] = "table"
    least: ClassVar[Mapping[str, int]] = {**RunConfig.least, "window": 0}

    table: str = field(kw_only=False)
    """The CSV or Parquet file, with a header; or a directory, a dataset that Hugging Face's `datasets` saved."""
    label: str = field(kw_only=False)
    """The column with the label."""
    per: Literal["sequence", "step"] = "sequence"
    """Whether a sequence has one label or each of its steps."""
    sequence: str = ""
    """The column that says which sequence a row, one step, belongs to. Without it (and without --characters) the
    table is one series, with a label per step."""
    characters: str = ""
    """A column of text: each row is then one sequence, the characters of this column, with one label."""
    inputs: str = ""
    """The columns to learn from, with commas between; without it, all columns of numbers but the label."""
    bidirectional: bool = False
    """Read each sequence from both ends."""
    embedding: int = 32
    """Size of the vector that stands for a character, or that the columns are mapped to; 0: columns as they are."""
    window: int = 0
    """Steps of truncated BPTT; 0 for whole sequences."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.characters and (self.sequence or self.inputs or self.per != "sequence"):
            raise ConfigError(
                "characters makes each row a sequence with one label; it goes with neither sequence, inputs nor "
                "per step"
            )
        if self.characters and not self.embedding:
            raise ConfigError("embedding must be at least 1 where characters are read, got 0")
        if not self.characters and not self.sequence and self.per == "sequence":
            raise ConfigError(
                "one label per sequence needs to know the sequences: name the column that tells them apart with "
                "--sequence, or a column of text with --characters; or label each step with --per step"
            )
        if not self.characters and not self.sequence and not self.window:
            raise ConfigError("one long series is read in windows; give --window, the steps of truncated BPTT")
        if self.bidirectional and self.window:
            raise ConfigError("bidirectional reads whole sequences; leave window at 0")


@dataclass(frozen=True, kw_only=True)
class NotesConfig(RunConfig):
    """Predict which notes sound next in piano rolls, or any of many labels a step, from all before."""

    kind: ClassVar[str] = "notes"
    source: ClassVar[str] = "archive"
    least: ClassVar[Mapping[str, int]] = {**RunConfig.least, "window": 0}

    archive: str = field(kw_only=False)
    """The .npz file: `train`, and if there are `valid` and `test`, each [steps, notes] of 0 and 1, all pieces one
    behind the other, with their lengths in `train_len`; or `train_bits`, the same packed by numpy.packbits."""
    window: int = 0
    """Steps of truncated BPTT; 0 for whole pieces."""
    batch: int = 16
    """Pieces that are read side by side."""


@dataclass(frozen=True, kw_only=True)
class TaskConfig(RunConfig):
    """A generated task with a known long dependency; each batch is new."""

    kind: ClassVar[str] = "task"
    source: ClassVar[str] = "task"
    movable: ClassVar[bool] = False
    least: ClassVar[Mapping[str, int]] = {**RunConfig.least, "lag": 1, "window": 0}

    task: str = field(kw_only=False)
    """copy, adding, multiplication, reber, temporal-order, temporal-order-3 or recall."""
    lag: int = 100
    """Over how many steps the dependency reaches, about; each task's page says what it is exactly."""
    window: int = 0
    """Steps of truncated BPTT; 0 for whole sequences."""
    steps: int = 2000
    """Updates of the weights, counted from the start of the run."""

    @property
    def title(self) -> str:
        return f"{self.task}-{self.lag}"

    def anchored(self) -> TaskConfig:
        return self


KINDS: dict[str, type[RunConfig]] = {
    kind.kind: kind for kind in (LMConfig, ForecastConfig, LabelConfig, NotesConfig, TaskConfig)
}
"""The kinds by their names, as `config.json` and the command line have them."""


def to_plain(config: RunConfig) -> dict[str, Any]:
    """The description as it is saved in JSON: its kind, and every option."""
    return {"kind": config.kind, "config": asdict(config)}


def from_plain(content: Mapping[str, Any]) -> RunConfig:
    """The description that `to_plain` gave; raises `ConfigError` that says what is wrong with another."""
    name, options = content.get("kind"), content.get("config")
    if not isinstance(name, str) or name not in KINDS:
        raise ConfigError(f"there is no kind {name!r} of run; the kinds are {', '.join(KINDS)}")
    if not isinstance(options, dict):
        raise ConfigError("it has no options")
    kind = KINDS[name]
    known = {field.name for field in fields(kind)}
    if unknown := sorted(map(str, set(options) - known)):
        raise ConfigError(f"unknown options {', '.join(unknown)[:200]}")
    try:
        return kind(**options)
    except TypeError as error:  # an option without a default is not there
        raise ConfigError(f"options are missing: {error}") from None
