"""Parquet files as tables, where pyarrow is installed."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

from throughtime.errors import DataError
from throughtime.train.data.reading import read_whole
from throughtime.train.data.table import Table


def read_parquet(path: Path) -> Table:
    """Read a Parquet file, its cells as a CSV file would have them: empty for null, 1 and 0 for true and false.

    Raises `DataError` for what is no such file, or without pyarrow.
    """
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"to read {path}, install pyarrow (pip install pyarrow), or save the table as CSV") from None
    raw = read_whole(path, "Parquet")
    try:
        content = parquet.read_table(io.BytesIO(raw), use_threads=False)
        names = [str(name) for name in content.column_names]
        columns = [[_cell(value) for value in column.to_pylist()] for column in content.columns]
    except Exception as error:  # a damaged file raises many kinds
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DataError(f"{path} is no Parquet file that can be read ({why}); save it again, or as CSV") from None
    if not names or not columns[0]:
        raise DataError(f"{path} has no rows; there is nothing to learn from")
    if len(set(names)) < len(names):
        raise DataError(f"{path} has two columns of one name; give each a name of its own")
    return Table(path, dict(zip(names, columns, strict=True)), hashlib.sha256(raw).hexdigest())


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, bool) else str(value)
