"""The guard's incidents in a file, a line of JSON each, there for others to read while training goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path

from throughtime.cures.guard_report import Incident
from throughtime.errors import CheckpointError
from throughtime.files import writing

KIND, FORMAT = "guard", 1
"""What stands in the first line of the file."""


class IncidentLog:
    """Writes each incident of a guard to a new file: `tt.Guard(..., on_incident=IncidentLog("guard.jsonl"))`.

    A line has the iteration, the fault, what was done, and the whole report as text. `throughtime serve` shows them as
    alarms. Raises CheckpointError for a file that is already there; WriteError where it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
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

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, line: dict[str, object]) -> None:
        with writing(self.path):
            self._file.write(json.dumps(line) + "\n")
