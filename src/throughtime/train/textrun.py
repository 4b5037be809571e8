"""A run on text, opened together with its text, for those who measure its model on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from throughtime.errors import ConfigError
from throughtime.train.data.schema import TextSchema
from throughtime.train.data.text import TextData, read_text
from throughtime.train.kinds import LMConfig
from throughtime.train.rundir import Run


def open_text_run(run_dir: str | Path, text: str | Path | None = None) -> tuple[Run, LMConfig, TextData]:
    """The run, its description with the CPU as its device, and its text, which is at `text` if it was moved.

    Raises `CheckpointError`, `DataError` (the text is another one), `ConfigError` for a run on other data.
    """
    run = Run.open(Path(run_dir))
    if not isinstance(run.config, LMConfig) or not isinstance(run.schema, TextSchema):
        raise ConfigError(f"{run.path} is a run of the kind {run.config.kind!r}; this is for runs on text")
    config = replace(run.config, device="cpu")
    if text is not None:
        config = config.changed(text=str(Path(text).absolute()))
    found = read_text(config, run.schema.vocabulary)
    run.check_data(found.sha256)
    return run, config, found
