"""Tables as named columns, from CSV files, with errors that name line and column."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from throughtime.errors import DataError
from throughtime.train.data.reading import decode_chunks, is_saved, read_whole

_SEPARATORS = ",;\t|"


@dataclass(frozen=True)
class Table:
    """A table: its columns by name, as they stand in the file, and its fingerprint.

    parts: the rows that are for training, validation ("valid") and test, where the table itself says so.
    """

    path: Path
    columns: dict[str, list[str]]
    sha256: str
    parts: Mapping[str, range] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def text(self, name: str) -> list[str]:
        """A column as it stands; raises `DataError` if there is none of this name."""
        if name not in self.columns:
            raise DataError(f"{self.path} has no column {name!r}; its columns are {', '.join(map(repr, self.columns))}")
        return self.columns[name]

    def numbers(self, names: Sequence[str]) -> Tensor:
        """Columns as numbers [rows, columns], float64; raises `DataError` that names the first cell that is none."""
        parts = []
        for name in names:
            values = []
            for row, cell in enumerate(self.text(name), 1):
                value = number_of(cell)
                if value is None:
                    what = f"is {cell[:40]!r}, not a finite number" if cell.strip() else "is empty"
                    raise DataError(
                        f"{self.path}: column {name!r} {what} in row {row} (the header not counted); put a number "
                        "there, or leave the column out"
                    )
                values.append(value)
            parts.append(torch.tensor(values, dtype=torch.float64))
        return torch.stack(parts, 1)

    def numeric(self) -> list[str]:
        """The names of the columns in which every cell is a finite number."""
        return [name for name, cells in self.columns.items() if all(number_of(cell) is not None for cell in cells)]

    def chosen(self, wanted: str, leave_out: Sequence[str] = ()) -> list[str]:
        """The columns named in `wanted`, with commas between; where it is empty, all numeric ones but `leave_out`."""
        if wanted:
            names = [name.strip() for name in wanted.split(",")]
            for name in names:
                self.text(name)
            if len(set(names)) < len(names):
                raise DataError(f"a column is named twice in {wanted!r}; name each once")
            return names
        return [name for name in self.numeric() if name not in leave_out]


def read_table(path: Path, splits: bool = False) -> Table:
    """Read a CSV file with a header; of , ; tab and | the one that is commonest in the header separates.

    A name that ends in .parquet is read as such, and a directory as a dataset that Hugging Face's `datasets` saved;
    one with several splits only where `splits` are wanted. Raises `DataError` for what is no such file, naming the
    line.
    """
    if is_saved(path):
        from throughtime.train.data.saved import read_saved

        return read_saved(path, splits)
    if path.suffix == ".parquet":
        from throughtime.train.data.parquet import read_parquet

        return read_parquet(path)
    raw = read_whole(path, "CSV")
    sha256 = hashlib.sha256(raw).hexdigest()
    text = "".join(decode_chunks(path, iter([raw]))).removeprefix("\ufeff")
    header = text[: text.find("\n")] if "\n" in text else text
    separator = max(_SEPARATORS, key=header.count)
    if "\0" in text:
        raise DataError(f"{path} has a zero byte in it and is no CSV file; export the table as CSV")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; export the table as CSV again") from None
    if not rows:
        raise DataError(f"{path} has no header; its first line must name the columns")
    names = [name.strip() for name in rows[0][1]]
    if not all(names) or len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1 and name})
        why = f"{twice[0]!r} stands there twice" if twice else "a column has no name"
        raise DataError(f"{path}: {why} in the header; give each column a name of its own")
    for line, row in rows[1:]:
        if len(row) != len(names):
            raise DataError(f"{path}, line {line}: {len(row)} cells, and the header names {len(names)} columns")
    if len(rows) < 2:
        raise DataError(f"{path} has a header and no rows; there is nothing to learn from")
    columns = {name: [row[i] for _, row in rows[1:]] for i, name in enumerate(names)}
    return Table(path, columns, sha256)


def number_of(cell: str) -> float | None:
    """The finite number in a cell; None where there is none."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in cell else None
