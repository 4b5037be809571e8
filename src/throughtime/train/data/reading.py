"""Files as chunks of bytes and of text, never all at once, with errors that name the file and the byte."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from pathlib import Path

from throughtime.errors import DataError

CHUNK = 1 << 20
"""Bytes that are read at once; with pieces four times as large the memory that malloc keeps grew with the text."""


def files_at(path: Path, what: str = "text") -> list[Path]:
    """The file itself, or all files in a folder and its folders, in the order of their names.

    Files and folders whose names begin with a dot are left out. Raises `DataError` when there is nothing to read.
    """
    if os.path.isdir(path):  # os.path, unlike Path, takes a name that is too long for a missing one
        try:
            inside = [p for p in path.rglob("*") if not any(s.startswith(".") for s in p.relative_to(path).parts)]
            files = sorted(p for p in inside if p.is_file())
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from None
        if not files:
            raise DataError(f"the folder {path} has no files in it; name a {what} file, or a folder of them")
        return files
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe or a device may never end
        raise DataError(f"{path} is not a regular file; save what it gives to a file first")
    return [path]


def is_saved(path: Path) -> bool:
    """Whether a directory holds a dataset that Hugging Face's `datasets` saved, or several by their splits."""
    if not os.path.isdir(path):
        return False
    one = all((path / name).is_file() for name in ("state.json", "dataset_info.json"))
    return one or (path / "dataset_dict.json").is_file()


def read_chunks(path: Path, size: int | None = None) -> Iterator[bytes]:
    """The content of a file, in pieces of `CHUNK` (or `size`) bytes; raises `DataError` if it cannot be read."""
    try:
        with open(path, "rb") as file:
            while chunk := file.read(size or CHUNK):
                yield chunk
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def decode_chunks(path: Path, chunks: Iterator[bytes], way_out: str = "convert it to UTF-8") -> Iterator[str]:
    """The text of a file of UTF-8; raises `DataError` that names the byte that is none."""
    decoder, done = codecs.getincrementaldecoder("utf-8")(), 0
    for chunk in chunks:
        begin = done - len(decoder.getstate()[0])
        if text := _decode(decoder, path, chunk, begin, way_out):
            yield text
        done += len(chunk)
    if text := _decode(decoder, path, b"", done - len(decoder.getstate()[0]), way_out, last=True):
        yield text


def read_whole(path: Path, what: str) -> bytes:
    """The content of a file that is not read in pieces; raises `DataError`."""
    if os.path.isdir(path):
        raise DataError(f"{path} is a directory; name a {what} file")
    raw = b"".join(read_chunks(files_at(path)[0]))
    if not raw:
        raise DataError(f"{path} is empty; there is nothing to learn from")
    return raw


def _decode(
    decoder: codecs.IncrementalDecoder, path: Path, chunk: bytes, begin: int, way_out: str, last: bool = False
) -> str:
    try:
        return decoder.decode(chunk, last)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text: byte {error.object[error.start]:#04x} at offset {begin + error.start} "
            f"({error.reason}); {way_out}"
        ) from None
