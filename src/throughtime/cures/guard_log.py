"""The guard's incidents in a file, a line of JSON each, there for others to read while training goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path

from throughtime.cures.guard_report import Incident
from throughtime.errors import CheckpointError
from throughtime.files import write_file, writing

KIND, FORMAT = "guard", 1
"""What stands in the first line of the file."""


class IncidentLog:
    """Writes each incident of a guard to a new file: `tt.Guard(..., on_incident=IncidentLog("guard.jsonl"))`.

    A line has the iteration, the fault, what was done, and the whole report as text. `throughtime serve` shows them as
    alarms.

    keep: None for a new file. A number goes on with one that is there: so many of its incidents stay, as many as a
    training that is resumed had had; those behind them are dropped, for it will come to them again.
    Raises CheckpointError for a file that is already there, or that is none to go on with; WriteError where it cannot
    be written.
    """

    def __init__(self, path: str | os.PathLike[str], keep: int | None = None) -> None:
        self.path = Path(path)
        if keep is not None and self.path.exists():
            self._shorten(keep)
            with writing(self.path):
                self._file = open(self.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
            return
        with writing(self.path):
            try:
                self._file = open(self.path, "x", encoding="utf-8", buffering=1)  # noqa: SIM115  (kept for the run)
            except FileExistsError:
                raise CheckpointError(
                    f"{self.path} is already there, and is never written over; choose another path, or move it"
                ) from None
        self._write({"throughtime": KIND, "format": FORMAT})

    def __call__(self, incident: Incident) -> None:
        found = {"iteration": incident.iteration, "fault": incident.fault, "done": incident.done, "text": str(incident)}
        self._write(found)

    def sync(self) -> None:
        """Flushes to disk, so that no checkpoint is ever ahead of the file."""
        with writing(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        with writing(self.path):
            self._file.close()

    def _shorten(self, keep: int) -> None:
        try:
            head, *lines = self.path.read_text("utf-8").splitlines(keepends=True)
            known = json.loads(head) == {"throughtime": KIND, "format": FORMAT}
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror or error}") from None
        except (ValueError, RecursionError):  # empty, no text, no JSON
            known = False
        if not known:
            raise CheckpointError(f"{self.path} is no file of incidents that can be gone on with; move it away")
        whole = [line for line in lines[:keep] if line.endswith("\n")]
        write_file(self.path, "".join([head, *whole]).encode())

    def _write(self, line: dict[str, object]) -> None:
        with writing(self.path):
            self._file.write(json.dumps(line) + "\n")
