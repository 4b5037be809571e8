"""Datasets of Hugging Face that lie on disk, as their `save_to_disk` leaves them: read as tables and as texts."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from throughtime.errors import ConfigError, DataError
from throughtime.files import TEMPORARY, writing
from throughtime.train.data.reading import is_saved, read_chunks
from throughtime.train.data.table import Table

ROW = "row"
"""The column that is added where the cells of a dataset are lists, a list a sequence: the number of its row."""
_PARTS = {"train": "train", "validation": "valid", "valid": "valid", "dev": "valid", "test": "test"}


def save_dataset(dataset: Any, directory: str | os.PathLike[str]) -> str:
    """Saves a `datasets.Dataset`, or DatasetDict, where a run can find it again; gives the path for the run's config.

        config = LabelConfig(save_dataset(dataset, "data/names"), label="language", characters="name")

    It is written whole or not at all. One that is there already, with the same content, is taken as it is. Raises
    ConfigError for what is no dataset, DataError where something else is there, WriteError.
    """
    place = Path(directory)
    if not hasattr(dataset, "save_to_disk"):
        raise ConfigError(f"expected a datasets.Dataset or DatasetDict; came {type(dataset).__name__}")
    if place.exists():
        if not is_saved(place) or not _same(_load(place), dataset):
            raise DataError(f"{place} is already there and holds something else; choose another directory")
        return str(place)
    temporary = place.with_name(TEMPORARY + place.name)
    with writing(place):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            dataset.save_to_disk(os.fspath(temporary))
            os.rename(temporary, place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return str(place)


def read_saved(path: Path, several: bool = False) -> Table:
    """Reads a saved dataset as a table: a row is a row, a split is a part of the table.

    several: whether there may be more splits than one.

    Class labels are given by their names. Where cells are lists, of one length in a row, each of their elements is a
    row of the table, and the column "row" tells which row of the dataset it came from; lists of lists [T, D] give the
    columns NAME.0 to NAME.D-1. Raises DataError for what cannot be read, or without the package `datasets`.
    """
    splits = _splits(path)
    if len(splits) > 1 and not several:
        raise DataError(f"{path} has several splits, and one is wanted here: name it, such as {path / 'train'}")
    columns: dict[str, list[str]] = {}
    parts: dict[str, range] = {}
    first = 0
    for name, dataset in splits.items():
        found = _columns(path, dataset, first)
        if columns and list(found) != list(columns):
            raise DataError(f"{path}: its splits have other columns than one another ({name} has {', '.join(found)})")
        done = len(next(iter(columns.values()), []))
        for column, cells in found.items():
            columns.setdefault(column, []).extend(cells)
        parts[name] = range(done, len(next(iter(columns.values()))))
        first += len(dataset)
    return Table(path, columns, _sha256(path), parts if len(splits) > 1 else {})


class TextColumn:
    """A column of text in a saved dataset, one long text: row after row, a newline between two.

    Raises DataError if there is no such column.
    """

    def __init__(self, path: Path, column: str) -> None:
        self.path, self.column = path, column
        splits = _splits(path)
        if len(splits) > 1:
            raise DataError(
                f"{path} has several splits, and a text is cut in time: name one of them, such as {path / 'train'}"
            )
        self._dataset = next(iter(splits.values()))
        texts = [name for name, kind in self._dataset.features.items() if getattr(kind, "dtype", "") in _STRINGS]
        if column not in texts:
            known = ", ".join(map(repr, texts)) or "none"
            raise DataError(f"{path} has no column {column!r} of text; name one with --column. Of text are: {known}")

    def chunks(self) -> Iterator[bytes]:
        """The text as UTF-8, some rows at a time, never all at once."""
        done = 0
        for batch in self._dataset.with_format("arrow").iter(batch_size=1000):
            cells = batch.column(self.column).to_pylist()
            if None in cells:
                raise DataError(f"{self.path}: column {self.column!r} is empty in row {done + cells.index(None) + 1}")
            yield ("\n" * bool(done) + "\n".join(cells)).encode()
            done += len(cells)


_STRINGS = ("string", "large_string")


def _load(path: Path) -> Any:
    """The dataset, its files mapped into memory. Only Arrow and JSON files are read; nothing in them is run."""
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"to read the dataset {path} the package datasets is needed, which is not installed: "
            "pip install throughtime[datasets]"
        ) from None
    try:
        return datasets.load_from_disk(os.fspath(path.absolute()))
    except Exception as error:  # a damaged one raises many kinds
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DataError(f"{path} is no saved dataset that can be read ({why}); save it again") from None


def _splits(path: Path) -> dict[str, Any]:
    """By part: "train", and "valid" and "test" where there are such splits; a dataset without splits is "train"."""
    found = _load(path)
    splits = dict(found) if isinstance(found, dict) else {"train": found}
    unknown = [name for name in splits if name not in _PARTS]
    named = {_PARTS[name]: dataset for name, dataset in splits.items() if name not in unknown}
    if unknown or "train" not in named or len(named) < len(splits):
        raise DataError(
            f"{path} has the splits {', '.join(splits)}; there must be train, and may be validation and test. Name "
            f"one split by its own directory, such as {path / next(iter(splits))}"
        )
    if not all(len(dataset) for dataset in named.values()):
        raise DataError(f"{path} has no rows in one of its splits; there is nothing to learn from")
    return {part: named[part] for part in ("train", "valid", "test") if part in named}


def _columns(path: Path, dataset: Any, first: int) -> dict[str, list[str]]:
    try:
        table = dataset.with_format("arrow")[:]
        raw = {str(name): table.column(name).to_pylist() for name in table.column_names}
    except Exception as error:  # Arrow's, of a file cut short
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DataError(f"{path} is damaged ({why}); save it again") from None
    for name, kind in dataset.features.items():
        names = getattr(kind, "names", None) or getattr(getattr(kind, "feature", None), "names", None)
        if names:
            raw[name] = [_named(value, names) for value in raw[name]]
    lists = [name for name, cells in raw.items() if any(isinstance(v, list) for v in cells)]
    if not lists:
        return {name: [_cell(v) for v in cells] for name, cells in raw.items()}
    return _spread(path, raw, lists, first)


def _spread(path: Path, raw: dict[str, list[Any]], lists: list[str], first: int) -> dict[str, list[str]]:
    """Rows of lists as rows of their elements."""
    if ROW in raw:
        raise DataError(f"{path} has columns of lists, and a column named {ROW!r}, which these need; rename it")
    out: dict[str, list[str]] = {ROW: []}
    for number in range(len(raw[lists[0]])):
        lengths = {name: len(raw[name][number] or ()) for name in lists}
        length = lengths[lists[0]]
        if not length or len(set(lengths.values())) > 1:
            told = ", ".join(f"{name} {n}" for name, n in lengths.items())
            raise DataError(f"{path}: the lists of row {number + 1} have no length in common, or none at all ({told})")
        out[ROW] += [str(first + number)] * length
        for name, cells in raw.items():
            for column, value in _steps(name, cells[number], length, name in lists):
                out.setdefault(column, []).extend(map(_cell, value))
    if len({len(cells) for cells in out.values()}) > 1:
        raise DataError(f"{path}: the lists of lists in it are not all of one width")
    return out


def _steps(name: str, value: Any, length: int, spread: bool) -> Iterator[tuple[str, list[Any]]]:
    if not spread:
        yield name, [value] * length
    elif isinstance(value[0], list):
        for i in range(max(len(step or ()) for step in value)):
            yield f"{name}.{i}", [step[i] if step and i < len(step) else None for step in value]
    else:
        yield name, value


def _named(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_named(v, names) for v in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, bool) else str(value)


def _same(one: Any, other: Any) -> bool:
    """Whether two datasets hold the same, a thousand rows at a time."""
    if isinstance(one, dict) or isinstance(other, dict):
        if not (isinstance(one, dict) and isinstance(other, dict) and list(one) == list(other)):
            return False
        return all(_same(one[name], other[name]) for name in one)
    if one.features != other.features or len(one) != len(other):
        return False
    rows = (dataset.with_format("arrow").iter(batch_size=1000) for dataset in (one, other))
    return all(a.equals(b) for a, b in zip(*rows, strict=True))


def _sha256(path: Path) -> str:
    """Of all files that belong to it, by name."""
    found = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith((".", "cache-"))):
        found.update(json.dumps(str(file.relative_to(path))).encode())
        for chunk in read_chunks(file):
            found.update(chunk)
    return found.hexdigest()
