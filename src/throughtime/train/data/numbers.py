"""A text as one long row of numbers: in memory while it is small, mapped from a temporary file when it is large."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from throughtime.errors import DataError

LARGE = 1 << 26
"""Bytes from which on the numbers are kept on disk."""


class NumberWriter:
    """Takes numbers below `classes`, piece by piece, and gives them back as one tensor [N].

    The smallest integers that can hold them are used. More than `LARGE` bytes go to a file without a name in $TMPDIR
    or else /var/tmp, which is there as long as the tensor is, and is gone with the process, however that ends.
    """

    def __init__(self, classes: int, expected: int) -> None:
        self.dtype = np.dtype("uint8" if classes <= 256 else "int16" if classes <= 2**15 else "int32")
        self._parts: list[np.ndarray] = []
        self._count = 0
        self._file = None
        if expected * self.dtype.itemsize > LARGE:
            with _space():
                self._file = tempfile.TemporaryFile(dir=_place())  # noqa: SIM115  (lives as long as the mapping)

    def add(self, numbers: Tensor) -> None:
        """Append numbers [n]; raises `DataError` when the disk is full."""
        part = numbers.numpy().astype(self.dtype)
        self._count += len(part)
        if self._file is None:
            self._parts.append(part)
            return
        with _space():
            self._file.write(part.tobytes())

    def tensor(self) -> Tensor:
        """All numbers [N]."""
        if self._file is None:
            return torch.from_numpy(np.concatenate(self._parts) if self._parts else np.empty(0, self.dtype))
        with _space():
            self._file.flush()
            mapped = np.memmap(self._file, self.dtype, mode="r+", shape=(self._count,))
            self._file.close()  # the mapping keeps it alive
        return torch.from_numpy(mapped)


def map_bytes(path: Path, size: int) -> Tensor:
    """A file's bytes [N] as a tensor that is read from disk where it is looked at; writing to it changes no file."""
    try:
        return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    except RuntimeError as error:
        raise DataError(f"cannot map {path} into memory: {str(error).splitlines()[0]}") from None


def _place() -> str:
    return next(d for d in (os.environ.get("TMPDIR"), "/var/tmp", tempfile.gettempdir()) if d and os.path.isdir(d))


class _space:
    """Turns a full disk into a `DataError` that says where room is needed."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise DataError(
                f"cannot keep the text's numbers in {_place()}: {error.strerror or error}; set TMPDIR to a place with "
                "more room"
            ) from None
