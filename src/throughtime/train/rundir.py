"""A run's directory: the description and the schema that it began with, and where its log and checkpoints are.

RUN/config.json        the kind of the run, its options, and what was changed when it was continued
RUN/schema.json        what its numbers mean (vocabulary, normalisation, labels), and the fingerprint of the data
RUN/log.jsonl          one line a step
RUN/guard.jsonl        one line for each step that was bad, if there was one
RUN/watch.jsonl        the gradient through time, measured now and then
RUN/checkpoints/step-000200/{model.safetensors, resume.pt, meta.json}
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from throughtime.errors import CheckpointError, ConfigError, DataError
from throughtime.files import remove_leftovers, write_json, writing
from throughtime.train.config import RunConfig
from throughtime.train.data.prepared import Prepared
from throughtime.train.data.schema import Schema, schema_from_plain, schema_to_plain
from throughtime.train.kinds import from_plain, to_plain
from throughtime.train.launched import command

FORMAT = 2
"""Version of the files of a run; another one is refused."""


@dataclass
class Run:
    """A directory that holds one run."""

    path: Path
    config: RunConfig
    schema: Schema
    sha256: str
    changes: list[dict[str, Any]]
    made: bool = False

    @property
    def log(self) -> Path:
        """The log file."""
        return self.path / "log.jsonl"

    @property
    def incidents(self) -> Path:
        """The file of what the guard did."""
        return self.path / "guard.jsonl"

    @property
    def watched(self) -> Path:
        """The history of the gradient through time."""
        return self.path / "watch.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The directory of the checkpoints."""
        return self.path / "checkpoints"

    def resume_command(self, options: str = "") -> str:
        """The command that continues this run."""
        return f"{command()} train --resume {shlex.quote(str(self.path))}{' ' if options else ''}{options}"

    @classmethod
    def create(cls, path: Path, config: RunConfig, data: Prepared) -> Run:
        """Begin a run in a new or empty directory; raises `ConfigError` if there is something in it."""
        existed = os.path.isdir(path)
        with writing(path):
            if path.exists() and not (existed and not any(path.iterdir())):
                raise ConfigError(
                    f"{path} already exists and is left as it is; continue it with `throughtime train "
                    f"--resume "
                    f"{shlex.quote(str(path))}`, or choose another directory with --run"
                )
            path.mkdir(parents=True, exist_ok=True)
        run = cls(path, config, data.schema, data.sha256, [], made=not existed)
        try:
            schema = {"format": FORMAT, "data_sha256": data.sha256, "schema": schema_to_plain(data.schema)}
            write_json(path / "schema.json", schema)
            run.write_config()
        except BaseException:
            run.discard()
            raise
        return run

    def discard(self) -> None:
        """Take back what `create` made, because the run could not begin."""
        for name in ("schema.json", "config.json"):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        if self.made:
            self.path.rmdir()

    @classmethod
    def open(cls, path: Path) -> Run:
        """Read a run that was begun before; raises `CheckpointError` that says what is missing or damaged."""
        if not os.path.isdir(path):
            raise CheckpointError(f"there is no run directory {path}")
        saved, meanings = _read_json(path / "config.json"), _read_json(path / "schema.json")
        try:
            config, changes = from_plain(saved), saved.get("changes")
            if not isinstance(changes, list) or not all(map(_is_change, changes)):
                raise ValueError("its list of changes is none")
        except (ConfigError, ValueError) as error:
            raise _damaged(path / "config.json", error) from None
        try:
            schema = schema_from_plain(config, meanings.get("schema") or {})
            sha256 = str(meanings["data_sha256"])
        except (KeyError, ValueError) as error:
            raise _damaged(path / "schema.json", error) from None
        return cls(path, config, schema, sha256, changes)

    def write_config(self) -> None:
        """Write the options as they are now."""
        content = {"format": FORMAT, **to_plain(self.config), "changes": self.changes}
        write_json(self.path / "config.json", content)

    def change(self, config: RunConfig, step: int) -> None:
        """Take over the options of a run that goes on from `step`, and record what changed there."""
        before, after = asdict(self.config), asdict(config)
        while self.changes and self.changes[-1]["step"] >= step:  # made on a way that is now left
            undone = {k: v for k, v in self.changes.pop().items() if k != "step"}
            before.update({name: old for name, (old, _) in undone.items()})
        difference = {name: [before[name], after[name]] for name in after if before[name] != after[name]}
        if difference:
            self.changes.append({"step": step, **difference})
        self.config = config
        self.write_config()

    def check_data(self, sha256: str) -> None:
        """Raise `DataError` unless this is the fingerprint of the data that the run began with."""
        if sha256 != self.sha256:
            raise DataError(
                f"{getattr(self.config, self.config.source)} has changed since the run in {self.path} began; bring the "
                "old data back, or start a new run on the new"
            )

    def remove_leftovers(self) -> None:
        """Remove what a killed process left half-written."""
        with writing(self.path):
            remove_leftovers(self.path)
            if self.checkpoints.is_dir():
                remove_leftovers(self.checkpoints)


def new_run_path(config: RunConfig, root: Path = Path("runs")) -> Path:
    """A directory that does not exist yet: <root>/<data>-<cell>, or with -2, -3, ... behind it."""
    first = root / f"{config.title}-{config.cell}"
    path, number = first, 1
    while os.path.exists(path):
        number += 1
        path = first.with_name(f"{first.name}-{number}")
    return path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is not a run of throughtime train: it has no {path.name}") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    if not isinstance(content, dict):
        raise _damaged(path, "it is not a JSON object")
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {content.get('format')!r}, and this version of throughtime reads format "
            f"{FORMAT}; "
            f"use the version that wrote it, or start a new run"
        )
    return content


def _is_change(found: Any) -> bool:
    if not isinstance(found, dict) or type(found.get("step")) is not int:
        return False
    return all(isinstance(pair, list) and len(pair) == 2 for name, pair in found.items() if name != "step")


def _damaged(path: Path, why: object) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged ({' '.join(str(why).split())}); restore it from a copy, or start a new run"
    )
