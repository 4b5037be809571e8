"""Text as streams of symbols: reading it in two passes, its vocabulary, the split in time."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from throughtime.errors import DataError
from throughtime.train.data.numbers import LARGE, NumberWriter, map_bytes
from throughtime.train.data.reading import decode_chunks, files_at, is_saved, read_chunks
from throughtime.train.data.saved import TextColumn
from throughtime.train.data.streams import Streams
from throughtime.train.data.vocabulary import UNKNOWN, Vocabulary, words_of
from throughtime.train.kinds import LMConfig

_CODES = 0x110000  # of Unicode
_WAY_OUT = "read it as bytes with --symbols bytes, or convert it to UTF-8"


@dataclass(frozen=True)
class TextData:
    """A text made ready: its vocabulary, its streams for training, validation and test, its fingerprint."""

    vocabulary: Vocabulary
    train: Streams
    valid: Streams | None
    test: Streams | None
    sha256: str


def read_text(config: LMConfig, vocabulary: Vocabulary | None = None) -> TextData:
    """Read the text of a run, with the vocabulary given or, without one, its own.

    The first part is for training, then come `valid_fraction` for validation and `test_fraction` for the test; the
    vocabulary is of all of it. Files are never held in memory whole: large ones are mapped (see `NumberWriter`).
    Raises `DataError` when there is nothing to read, it is not decodable, or too short.
    """
    path = Path(config.text)
    vocabulary, numbers, sha256 = _numbers(path, config, vocabulary)
    n = len(numbers)
    test = n - round(n * config.test_fraction)
    split = test - round(n * config.valid_fraction)
    return TextData(
        vocabulary,
        _train_streams(path, numbers[:split], config),
        _held_out(path, numbers[split:test], config, "valid") if config.valid_fraction else None,
        _held_out(path, numbers[test:], config, "test") if config.test_fraction else None,
        sha256,
    )


def read_streams(config: LMConfig, vocabulary: Vocabulary) -> Streams:
    """A whole text, in the vocabulary of a trained model, to evaluate it on; raises `DataError` as `read_text`."""
    path = Path(config.text)
    return _held_out(path, _numbers(path, config, vocabulary)[1], config, "")


def _numbers(path: Path, config: LMConfig, vocabulary: Vocabulary | None) -> tuple[Vocabulary, Tensor, str]:
    files = _sources(path, config)
    if config.symbols == "bytes":
        return _bytes(path, files, vocabulary or Vocabulary("bytes"))
    coder: _Characters | _Words = _Characters() if config.symbols == "characters" else _Words(config.words)
    sha256, count = hashlib.sha256(), 0
    for text in _texts(files, sha256):
        coder.see(text)
        count += len(text)
    _not_empty(path, count)
    vocabulary = vocabulary or coder.vocabulary()
    writer = NumberWriter(len(vocabulary), count)
    for text in _texts(files):
        writer.add(coder.encode(vocabulary, text))
    return vocabulary, writer.tensor(), sha256.hexdigest()


def _sources(path: Path, config: LMConfig) -> list[Path | TextColumn]:
    if config.column and not is_saved(path):
        raise DataError(f"{path} is no saved dataset, and --column names a column of one; leave it out")
    return [TextColumn(path, config.column)] if is_saved(path) else list(files_at(path))


def _chunks(source: Path | TextColumn) -> Iterator[bytes]:
    return source.chunks() if isinstance(source, TextColumn) else read_chunks(source)


def _bytes(path: Path, files: list[Path | TextColumn], vocabulary: Vocabulary) -> tuple[Vocabulary, Tensor, str]:
    sha256, size = hashlib.sha256(), 0
    for chunk in _raw(files):
        sha256.update(chunk)
        size += len(chunk)
    _not_empty(path, size)
    if len(files) == 1 and size > LARGE and isinstance(files[0], Path):
        return vocabulary, map_bytes(files[0], size), sha256.hexdigest()
    writer = NumberWriter(256, size)
    for chunk in _raw(files):
        writer.add(torch.frombuffer(bytearray(chunk), dtype=torch.uint8))
    return vocabulary, writer.tensor(), sha256.hexdigest()


def _not_empty(path: Path, size: int) -> None:
    if not size:
        raise DataError(f"{path} is empty; there is nothing to learn from")


def _raw(files: list[Path | TextColumn]) -> Iterator[bytes]:
    for number, file in enumerate(files):
        if number:
            yield b"\n"
        yield from _chunks(file)


def _texts(files: list[Path | TextColumn], sha256: hashlib._Hash | None = None) -> Iterator[str]:
    """The text of the files, in pieces that end behind a space or a line, so that no word is cut in two."""
    left = ""
    for number, file in enumerate(files):
        left += "\n" if number else ""
        where = file.path if isinstance(file, TextColumn) else file
        for text in decode_chunks(where, _watched(_chunks(file), sha256), _WAY_OUT):
            text = left + text
            end = max(text.rfind(" "), text.rfind("\n")) + 1 or len(text)
            left = text[end:]
            yield text[:end]
    if left:
        yield left


def _watched(chunks: Iterator[bytes], sha256: hashlib._Hash | None) -> Iterator[bytes]:
    for chunk in chunks:
        if sha256 is not None:
            sha256.update(chunk)
        yield chunk


class _Characters:
    """The characters of a text: which there are, and their numbers."""

    def __init__(self) -> None:
        self._seen = torch.zeros(_CODES, dtype=torch.bool)
        self._table: Tensor | None = None

    def see(self, text: str) -> None:
        self._seen[_codes(text)] = True

    def vocabulary(self) -> Vocabulary:
        return Vocabulary("characters", "".join(map(chr, self._seen.nonzero().flatten().tolist())))

    def encode(self, vocabulary: Vocabulary, text: str) -> Tensor:
        """By one table look-up, as fast as the bytes can be read."""
        if self._table is None:
            self._table = torch.full((_CODES,), -1, dtype=torch.int32)
            self._table[[ord(c) for c in vocabulary.characters]] = torch.arange(len(vocabulary), dtype=torch.int32)
        numbers = self._table[_codes(text)]
        if bool((numbers < 0).any()):
            raise DataError("the text has characters that the vocabulary of this run does not have; it is another text")
        return numbers


class _Words:
    """The words of a text: how often each comes, and their numbers."""

    def __init__(self, most: int) -> None:
        self._counts: Counter[str] = Counter()
        self._most = most

    def see(self, text: str) -> None:
        self._counts.update(words_of(text))

    def vocabulary(self) -> Vocabulary:
        commonest = sorted(self._counts, key=lambda word: (-self._counts[word], word))[: self._most - 1]
        return Vocabulary("words", words=(UNKNOWN, *commonest))

    def encode(self, vocabulary: Vocabulary, text: str) -> Tensor:
        return vocabulary.encode(text)


def _codes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode("utf-32-le")), dtype=torch.int32)


def _train_streams(path: Path, numbers: Tensor, config: LMConfig) -> Streams:
    need = config.batch * config.window + 1
    if len(numbers) < need:
        most = (len(numbers) - 1) // config.window
        way_out = (
            f"lower --batch to {most} or less, or lower --window"
            if most >= 1
            else f"lower --window (to {len(numbers) - 1} at most, with --batch 1)"
            if len(numbers) > 1
            else "use a longer text"
        )
        raise DataError(
            f"{path} is too short: {len(numbers)} {config.symbols} to train on, and one window of {config.window} "
            f"steps for each of {config.batch} streams needs {need}; {way_out}"
        )
    return _streams(numbers, config.batch, config.window)


def _held_out(path: Path, numbers: Tensor, config: LMConfig, part: str) -> Streams:
    """As many streams as the text has whole windows for, `batch` at most."""
    if len(numbers) < config.window + 1:
        option = f"--{part}-fraction"
        where = {"valid": f"{path} is too short to validate on: its last part ({option} {config.valid_fraction:g})"}
        where["test"] = f"{path} is too short for a test: its last part ({option} {config.test_fraction:g})"
        way_out = f"lower --window, raise {option}, or do without it ({option} 0)" if part else "use a longer text"
        raise DataError(
            f"{where.get(part, f'{path} is too short: it')} has {len(numbers)} {config.symbols}, and one window needs "
            f"{config.window + 1}; {way_out}"
        )
    return _streams(numbers, min(config.batch, (len(numbers) - 1) // config.window), config.window)


def _streams(numbers: Tensor, batch: int, window: int) -> Streams:
    return Streams(numbers[:-1], numbers[1:], batch, window)
