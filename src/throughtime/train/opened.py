"""A run of any kind, opened together with its data, for those who measure its model on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from throughtime.errors import ConfigError
from throughtime.train.config import RunConfig
from throughtime.train.data.batch import Source
from throughtime.train.data.prepare import prepare
from throughtime.train.data.prepared import Prepared
from throughtime.train.rundir import Run


@dataclass(frozen=True)
class Opened:
    """A run, its description with the CPU as its device, and its data, made ready as the run reads them."""

    run: Run
    config: RunConfig
    data: Prepared

    @property
    def held(self) -> Source:
        """What is kept for validation; the training part of a run that keeps nothing."""
        return self.data.valid or self.data.train


def open_run(run_dir: str | Path, data: str | Path | None = None) -> Opened:
    """A run with its data, which are at `data` if they were moved.

    Raises `CheckpointError`, `DataError` (the data are others), `ConfigError` for a place of data that are generated.
    """
    run = Run.open(Path(run_dir))
    config = replace(run.config, device="cpu")
    if data is not None:
        if not config.movable:
            raise ConfigError(f"the data of {run.path} are generated, so they are in no file; leave {str(data)!r} out")
        config = config.changed(**{config.source: str(Path(data).absolute())})
    found = prepare(config, run.schema)
    run.check_data(found.sha256)
    return Opened(run, config, found)
