"""The options of `throughtime train`, one class for each kind of data: a run's own, and where it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from throughtime.train.config import RunConfig
from throughtime.train.kinds import ForecastConfig, LabelConfig, LMConfig, NotesConfig, TaskConfig

_RUN = tyro.conf.arg(metavar="RUN", help_behavior_hint="")
_NEW = tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: runs/DATA-CELL)")
_TEXT = tyro.conf.arg(metavar="FILE", help_behavior_hint="")
_TABLE = tyro.conf.arg(metavar="TABLE", help_behavior_hint="")
_ARCHIVE = tyro.conf.arg(metavar="ARCHIVE", help_behavior_hint="")
_TASK = tyro.conf.arg(metavar="TASK", help_behavior_hint="")


@dataclass(frozen=True, kw_only=True)
class _Where:
    """What a command needs besides the description of the run."""

    run: Annotated[Path | None, _NEW] = None
    """Directory of the new run; one that already holds something is refused."""
    resume: Annotated[Path | None, _RUN] = None
    """Continue this run. Its options stay, except for those given here; only those may change that leave the model
    and its data alone, such as --steps, --lr, --clip-norm, --patience, --threads and --device."""
    checkpoint: str = "last"
    """With --resume: the checkpoint to go on from, as last, best or step-000200. Later ones are dropped."""
    print_every: int = 50
    """Where the output is not a terminal: print a line every so many steps."""
    log_to: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    """Tell trackers of the run, one or several: TensorBoard (in RUN/tensorboard), trackio (on this machine), W&B
    (offline, in RUN/wandb). Continued, a run goes on telling those that it told before."""

    def __post_init__(self) -> None:
        """Check nothing yet: `config` does, once it is known whether a run is continued."""

    def config(self) -> Any:
        """The description of the run; raises `ConfigError` when an option makes no sense."""
        kind = next(c for c in type(self).__mro__ if issubclass(c, RunConfig) and not issubclass(c, _Where))
        return kind(**{field.name: getattr(self, field.name) for field in fields(kind)})


@dataclass(frozen=True, kw_only=True)
class Train(_Where, LMConfig):
    """Train a language model on a text file or a folder of them; `throughtime train KIND ...` trains on other data:

    `text FILE` the same as without a KIND, `forecast TABLE` a column of a CSV file, `label TABLE` sequences or steps,
    `notes ARCHIVE` piano rolls, `task NAME` a generated task. Each has its own --help.

    The run goes to a directory of its own with its options, its log and its checkpoints. Ctrl-C saves before
    it stops; `throughtime train --resume RUN` goes on from there to the same numbers, whatever its kind.
    """

    text: Annotated[tyro.conf.Positional[str], _TEXT] = ""
    """The text file to learn from, or a folder: then all files in it, by name; or a saved dataset, with --column. Not
    needed with --resume."""


@dataclass(frozen=True, kw_only=True)
class TrainForecast(_Where, ForecastConfig):
    """Learn to forecast a column of a table from all columns so far: a density for each of the steps ahead."""

    table: Annotated[tyro.conf.Positional[str], _TABLE] = ""
    """The CSV or Parquet file: a header, then a row for each step, in the order of time."""
    target: str = ""
    """The column to forecast."""


@dataclass(frozen=True, kw_only=True)
class TrainLabel(_Where, LabelConfig):
    """Learn to label sequences, or each of their steps, from the rows of a table."""

    table: Annotated[tyro.conf.Positional[str], _TABLE] = ""
    """The CSV or Parquet file, with a header; or a directory, a dataset that Hugging Face's `datasets` saved."""
    label: str = ""
    """The column with the label."""


@dataclass(frozen=True, kw_only=True)
class TrainNotes(_Where, NotesConfig):
    """Learn which notes sound next in piano rolls, or any of many labels a step, from all before."""

    archive: Annotated[tyro.conf.Positional[str], _ARCHIVE] = ""
    """The .npz file: `train`, and if there are `valid` and `test`, each [steps, notes] of 0 and 1, all pieces one
    behind the other, with their lengths in `train_len`; or `train_bits`, the same packed by numpy.packbits."""


@dataclass(frozen=True, kw_only=True)
class TrainTask(_Where, TaskConfig):
    """Learn a generated task with a known long dependency; each batch is new."""

    task: Annotated[tyro.conf.Positional[str], _TASK] = ""
    """copy, adding, multiplication, reber, temporal-order, temporal-order-3 or recall."""


KINDS: dict[str, type[Any]] = {
    "text": Train, "forecast": TrainForecast, "label": TrainLabel, "notes": TrainNotes, "task": TrainTask
}  # fmt: skip
"""By the word behind `throughtime train`; a text needs none."""


def kind_in(words: Sequence[str]) -> str | None:
    """The kind of data that the words of a `throughtime train` name; None where they name none: then it is a text."""
    return words[1] if len(words) > 1 and words[0] == "train" and words[1] in KINDS else None


def like(config: RunConfig) -> Any:
    """Options that start from those of an earlier run."""
    return KINDS[config.kind](**asdict(config))
