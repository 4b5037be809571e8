"""Files that are there whole or not at all: written beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from throughtime.errors import CheckpointError

TEMPORARY = ".tmp-"
"""How the names of things half-written begin; what a kill left behind is found by it."""


class WriteError(CheckpointError):
    """Something of a run could not be written; what was there before is unharmed."""


@contextmanager
def writing(what: str | Path) -> Iterator[None]:
    """Turn an OSError into a `WriteError` of one line that names what was being written."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"cannot write {what}: {error.strerror or error}; nothing half-written was left") from None


def write_directory(place: Path, files: Mapping[str, bytes]) -> None:
    """Make the directory `place` with these files, in one rename, or nothing; raises `WriteError`."""
    temporary = place.with_name(TEMPORARY + place.name)
    with writing(place):
        try:
            remove_tree(temporary)
            temporary.mkdir(parents=True)
            for name, content in files.items():
                _write_synced(temporary / name, content)
            _sync_directory(temporary)
            os.rename(temporary, place)
            _sync_directory(place.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def write_file(place: Path, content: bytes) -> None:
    """Write or replace one file, in one rename; raises `WriteError` and keeps the old one if it fails."""
    temporary = place.with_name(TEMPORARY + place.name)
    with writing(place):
        try:
            _write_synced(temporary, content)
            os.replace(temporary, place)
            _sync_directory(place.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_json(place: Path, value: Any) -> None:
    """Write or replace a JSON file; see `write_file`."""
    write_file(place, to_json(value))


def to_json(value: Any) -> bytes:
    """`value` as the bytes of an indented JSON file; a NaN or an infinity is refused, for JSON has none."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def remove_tree(place: Path) -> None:
    """Remove a directory such that a reader sees it whole or not at all."""
    if not place.exists():
        return
    if not place.name.startswith(TEMPORARY):
        hidden = place.with_name(f"{TEMPORARY}old-{place.name}")
        shutil.rmtree(hidden, ignore_errors=True)
        place = place.rename(hidden)
    shutil.rmtree(place)


def remove_leftovers(directory: Path) -> None:
    """Remove what a killed process left half-written in `directory`."""
    for place in directory.glob(TEMPORARY + "*"):
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)


def _write_synced(place: Path, content: bytes) -> None:
    with open(place, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(place: Path) -> None:
    if os.name != "posix":  # Windows cannot open a directory; a rename is on disk there when it returns
        return
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
