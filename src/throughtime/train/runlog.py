"""The log of a run: one JSON object a line, one line a step."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from throughtime.errors import CheckpointError
from throughtime.files import write_file, writing


@dataclass(frozen=True)
class StepRecord:
    """What one step measured; its loss and gradient are those of the weights before the step's update."""

    step: int
    """Updates done, this one included."""
    loss: float
    """Mean loss of the step's windows, in the unit of the run: bits per symbol for a text."""
    grad_norm: float
    """Global norm of the gradient before clipping (loss in nats)."""
    seconds: float
    """Time the step took, without validation and saving."""
    valid: float | None = None
    """Validation loss after the update, in the same unit; None at a step without validation."""

    def line(self) -> str:
        """The record as a line of the log."""
        return json.dumps({k: v for k, v in asdict(self).items() if v is not None}) + "\n"


def read_log(path: Path, until: int | None = None) -> list[StepRecord]:
    """The records of a log up to step `until`; a last line cut short by a kill is left out.

    Raises `CheckpointError` that names a damaged line.
    """
    try:
        lines = path.read_text("utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None
    records: list[StepRecord] = []
    for number, line in enumerate(lines, 1):
        if number == len(lines) and not line.endswith("\n"):
            break
        try:
            record = StepRecord(**json.loads(line))
            if not _is_record(record):
                raise ValueError
        except (ValueError, TypeError, RecursionError):
            raise CheckpointError(
                f"line {number} of {path} is damaged; remove that line, or move the file away to go on without it"
            ) from None
        if until is None or record.step <= until:
            records.append(record)
    return records


def _is_record(record: StepRecord) -> bool:
    numbers = (record.loss, record.grad_norm, record.seconds, *(() if record.valid is None else (record.valid,)))
    return type(record.step) is int and all(type(value) in (int, float) for value in numbers)


class RunLog:
    """Appends records to a log that first loses every line after step `until`.

    records: what it holds, where another process writes it: then no file is touched.
    """

    def __init__(self, path: Path, until: int, records: list[StepRecord] | None = None) -> None:
        self.path, self._writes = path, records is None
        self._begin(read_log(path, until) if records is None else records)

    def _begin(self, records: list[StepRecord]) -> None:
        self.records = records
        if not self._writes:
            return
        write_file(self.path, "".join(r.line() for r in records).encode())
        with writing(self.path):
            self._file = open(self.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115  (closed by close)

    def cut(self, until: int) -> None:
        """Lose every line after step `until`: the run has gone back there."""
        self.close()
        self._begin([r for r in self.records if r.step <= until])

    def append(self, record: StepRecord) -> None:
        """Write one more line, readable by others at once."""
        self.records.append(record)
        if not self._writes:
            return
        with writing(self.path):
            self._file.write(record.line())

    def sync(self) -> None:
        """Flush to disk, so that no checkpoint is ever ahead of the log."""
        if not self._writes:
            return
        with writing(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if not self._writes:
            return
        with writing(self.path):
            self._file.close()
