"""A run's records as a list of plain rows: of its steps, of its watch, of its guard; for pandas, CSV or a loop."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, SupportsIndex, overload

from throughtime.cures.guard_report import Incident
from throughtime.diagnosis.history import Record, read_history
from throughtime.errors import CheckpointError, ConfigError
from throughtime.files import write_file
from throughtime.train.rundir import Run
from throughtime.train.runlog import StepRecord, read_log

COLUMNS: dict[str, tuple[str, ...]] = {
    "steps": tuple(field.name for field in fields(StepRecord)),
    "watch": (
        "step", "seconds", "loss", "grad_norm", "recurrence", "cell", "horizon", "at_least", "half_life", "window",
        "estimated", "problem", "cost",
    ),
    "guard": ("step", "fault", "done", "text"),
}  # fmt: skip
"""The columns of each history."""
_FILES = {"watch": "watch.jsonl", "guard": "guard.jsonl"}


class History(list[dict[str, Any]]):
    """Rows with the same keys, oldest first; None where there is no value. `pandas.DataFrame(rows)` takes it as it is.

    of: "steps", "watch" or "guard".   columns: the keys, in their order.
    """

    def __init__(self, of: str, rows: Iterable[dict[str, Any]]) -> None:
        self.of, self.columns = of, COLUMNS[of]
        super().__init__({name: row.get(name) for name in self.columns} for row in rows)

    def column(self, name: str) -> list[Any]:
        """One column. Raises ConfigError if there is none of this name."""
        if name not in self.columns:
            raise ConfigError(f"there is no column {name!r}; the columns are {', '.join(self.columns)}")
        return [row[name] for row in self]

    def frame(self) -> Any:
        """A pandas.DataFrame with these columns, also where there is no row. Raises ConfigError without pandas."""
        try:
            import pandas
        except ImportError:
            raise ConfigError(
                "a data frame needs pandas, which is not installed: pip install throughtime[pandas]"
            ) from None
        return pandas.DataFrame(list(self), columns=list(self.columns))

    def csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """The rows as CSV with a header, an empty cell for None; written to `path` whole or not at all, if given.

        Raises WriteError.
        """
        out = io.StringIO()
        writer = csv.DictWriter(out, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self)
        if path is not None:
            write_file(Path(path), out.getvalue().encode())
        return out.getvalue()

    @overload
    def __getitem__(self, which: SupportsIndex) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, which: slice) -> History: ...
    def __getitem__(self, which: Any) -> Any:
        found = super().__getitem__(which)
        return History(self.of, found) if isinstance(which, slice) else found


def history(source: Any, of: Literal["steps", "watch", "guard"] = "steps", *, frame: bool = False) -> Any:
    """The history of a run as plain rows, a `History`; with frame=True as a pandas.DataFrame.

        rows = history("runs/cats-lstm")            # a row a step: step, loss, grad_norm, seconds, valid
        history("runs/cats-lstm", "watch").frame()  # a row for each recurrence of each measurement
        history("runs/cats-lstm", "guard")          # a row an incident

    source: the directory of a run; a file that `tt.watch` or `cures.IncidentLog` wrote; a `TrainResult`; a watch, a
            guard, or a callback of `throughtime.lightning` or `throughtime.transformers`, with what it saw so far.
    of:     which of the histories, where the source has several.

    Losses are in the run's own unit; horizon, half_life and window in time steps; seconds since the watch began (of a
    step: what it took); cost is a share of training time. Raises CheckpointError for what is missing or damaged, and
    ConfigError for a source that has no such history.
    """
    if of not in COLUMNS:
        raise ConfigError(f"of must be one of {', '.join(COLUMNS)}; came {of!r}")
    found = _on_disk(Path(source), of) if isinstance(source, str | os.PathLike) else _in_memory(source, of)
    return found.frame() if frame else found


def _on_disk(path: Path, of: str) -> History:
    if path.is_dir():
        Run.open(path)
        if of == "steps":
            return _steps(read_log(path / "log.jsonl"))
        path /= _FILES[of]
        if not path.exists():  # a run without a watch, or without an incident
            return History(of, ())
    if not path.is_file():
        raise CheckpointError(f"there is neither a run nor a history at {path}")
    if _kind(path) == "guard":
        return History("guard", _incidents_in(path))
    return _watched(read_history(path).records)


def _in_memory(source: Any, of: str) -> History:
    steps, watched, incidents = (getattr(source, name, None) for name in ("history", "watched", "incidents"))
    if watched is None and _all(steps, Record):  # a watch
        steps, watched = None, steps
    if of == "steps" and not _all(steps, StepRecord):  # not a run
        of = "watch" if _all(watched, Record) else "guard"
    if of == "steps":
        return _steps(steps or ())
    if of == "watch" and _all(watched, Record):
        return _watched(watched or ())
    if of == "guard" and _all(incidents, Incident):
        return History("guard", (_incident(found) for found in incidents or ()))
    raise ConfigError(
        f"a {type(source).__name__} has no history of this kind ({of}); give the directory of a run, a watch or a guard"
    )


def _all(found: Any, kind: type) -> bool:
    return isinstance(found, list | tuple) and all(isinstance(one, kind) for one in found)


def _steps(records: Sequence[StepRecord]) -> History:
    return History("steps", map(asdict, records))


def _watched(records: Sequence[Record]) -> History:
    return History("watch", (row for record in records for row in _measured(record)))


def _measured(record: Record) -> list[dict[str, Any]]:
    about = {name: getattr(record, name) for name in ("step", "seconds", "loss", "grad_norm", "cost")}
    if not record.recurrences:
        return [{**about, "problem": "; ".join(record.notes) or None}]
    return [
        {
            **about, "recurrence": seen.place, "cell": seen.cell, "window": seen.steps,
            "horizon": None if seen.horizon is None else seen.horizon.steps,
            "at_least": None if seen.horizon is None else seen.horizon.at_least,
            "half_life": seen.half_life, "estimated": seen.estimated, "problem": seen.problem,
        }
        for seen in record.recurrences
    ]  # fmt: skip


def _incident(found: Incident) -> dict[str, Any]:
    return {"step": found.iteration, "fault": found.fault, "done": found.done, "text": str(found)}


def _kind(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return str(json.loads(file.readline(1 << 16)).get("throughtime"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, AttributeError, RecursionError):
        raise CheckpointError(f"{path} is no history of a watch or a guard: its first line does not say so") from None


def _incidents_in(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text("utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None
    rows = []
    for number, line in enumerate(lines[1:], 2):
        if number == len(lines) and not line.endswith("\n"):  # cut short by a kill
            break
        try:
            found = json.loads(line)
            rows.append({"step": int(found["iteration"]), **{k: str(found[k]) for k in ("fault", "done", "text")}})
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise CheckpointError(f"line {number} of {path} is damaged; remove that line to read the rest") from None
    return rows
