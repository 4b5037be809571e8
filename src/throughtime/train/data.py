"""Text as streams of symbols: reading, the vocabulary, the split in time, the windows of truncated BPTT."""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from throughtime.errors import DataError
from throughtime.train.config import LMConfig


@dataclass(frozen=True)
class Vocabulary:
    """The symbols of a model and their numbers: the 256 bytes, or the text's characters, sorted."""

    kind: str
    characters: str = ""

    def __len__(self) -> int:
        return len(self.characters) if self.kind == "characters" else 256

    def encode(self, text: str) -> Tensor:
        """The numbers [T] of the symbols of `text`; raises `DataError` that names unknown ones."""
        if self.kind == "bytes":
            try:  # a command line hands bytes that are no UTF-8 over as surrogates
                return torch.tensor(list(text.encode("utf-8", "surrogateescape")), dtype=torch.long)
            except UnicodeEncodeError as error:
                raise DataError(f"the text cannot be written as UTF-8: {error.reason}") from None
        number = {symbol: i for i, symbol in enumerate(self.characters)}
        unknown = sorted(set(text) - set(number))
        if unknown:
            names = ", ".join(map(ascii, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
            raise DataError(
                f"{names} {'is' if len(unknown) == 1 else 'are'} not in the vocabulary, which has the "
                f"{len(self)} characters of the text that the model learned from; leave out what it never saw"
            )
        return torch.tensor([number[symbol] for symbol in text], dtype=torch.long)

    def decode(self, numbers: Iterable[int]) -> str:
        """The text of a sequence of numbers; bytes that are no UTF-8 show as U+FFFD."""
        decoder = self.decoder()
        return "".join(map(decoder.feed, numbers)) + decoder.close()

    def decoder(self) -> Decoder:
        """Decodes number by number, for text that is shown while it is written."""
        return Decoder(self)


class Decoder:
    """Turns numbers into text one at a time; a character of several bytes appears with its last one."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._characters = vocabulary.characters if vocabulary.kind == "characters" else None
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, number: int) -> str:
        """The text that is complete now that `number` came."""
        return self._characters[number] if self._characters is not None else self._utf8.decode(bytes([number]))

    def close(self) -> str:
        """What stands for a character that was left incomplete."""
        return self._utf8.decode(b"", final=True)


class Streams:
    """B contiguous streams of a text, cut into windows of T steps, with the next symbol as target.

    Stream b starts at symbol b * ((N - 1) // B). The symbols after a stream's last whole window are not read.
    """

    def __init__(self, numbers: Tensor, batch: int, window: int, device: str = "cpu") -> None:
        length = (len(numbers) - 1) // batch
        self.window_length, self.device = window, device
        self.inputs = numbers[: batch * length].view(batch, length)
        self.targets = numbers[1 : batch * length + 1].view(batch, length)
        self.windows = length // window

    def __len__(self) -> int:
        return self.windows

    def window(self, index: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, both [T, B], of window `index`."""
        span = slice(index * self.window_length, (index + 1) * self.window_length)
        x, y = (part[:, span].t().to(self.device, torch.long) for part in (self.inputs, self.targets))
        return x, y


@dataclass(frozen=True)
class TextData:
    """A text made ready: its vocabulary, its streams for training and validation, its fingerprint."""

    vocabulary: Vocabulary
    train: Streams
    valid: Streams | None
    sha256: str


def read_text(config: LMConfig, vocabulary: Vocabulary | None = None) -> TextData:
    """Read the text of a run, with the vocabulary given or, without one, its own.

    The first part is for training, the last `valid_fraction` for validation; the vocabulary is of both.
    Raises `DataError` when the file is missing, not a file, empty, not decodable, or too short.
    """
    path = Path(config.text)
    raw = _read(path)
    if config.symbols == "bytes":
        vocabulary = vocabulary or Vocabulary("bytes")
        numbers = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    else:
        vocabulary, numbers = _number_characters(_decode(path, raw), vocabulary)
    split = len(numbers) - round(len(numbers) * config.valid_fraction)
    return TextData(
        vocabulary,
        _train_streams(path, numbers[:split], config),
        _valid_streams(path, numbers[split:], config) if config.valid_fraction else None,
        hashlib.sha256(raw).hexdigest(),
    )


def _read(path: Path) -> bytes:
    if os.path.isdir(path):  # os.path, unlike Path, takes a name that is too long for a missing one
        raise DataError(f"{path} is a directory; name a text file")
    if os.path.exists(path) and not os.path.isfile(
        path
    ):  # a pipe or a device may never end, and resuming reads it again
        raise DataError(f"{path} is not a regular file; save what it gives to a file first")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if not raw:
        raise DataError(f"{path} is empty; there is nothing to learn from")
    return raw


def _decode(path: Path, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text: byte {raw[error.start]:#04x} at offset {error.start} "
            f"({error.reason}); "
            f"read it as bytes with --symbols bytes, or convert it to UTF-8"
        ) from None


def _number_characters(text: str, vocabulary: Vocabulary | None) -> tuple[Vocabulary, Tensor]:
    """Numbers [N] of all characters by one table look-up, as fast as the bytes can be read."""
    codes = torch.frombuffer(bytearray(text.encode("utf-32-le")), dtype=torch.int32)
    if vocabulary is None:
        seen = torch.zeros(0x110000, dtype=torch.bool)
        seen[codes] = True
        vocabulary = Vocabulary("characters", "".join(map(chr, seen.nonzero().flatten().tolist())))
    table = torch.full((0x110000,), -1, dtype=torch.int32)
    table[[ord(c) for c in vocabulary.characters]] = torch.arange(len(vocabulary), dtype=torch.int32)
    numbers = table[codes]
    if bool((numbers < 0).any()):
        raise DataError("the text has characters that the vocabulary of this run does not have; it is another text")
    return vocabulary, numbers


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
            f"{path} is too short: {len(numbers)} {config.symbols} to train on, and one window of "
            f"{config.window} "
            f"steps for each of {config.batch} streams needs {need}; {way_out}"
        )
    return Streams(numbers, config.batch, config.window, config.device)


def _valid_streams(path: Path, numbers: Tensor, config: LMConfig) -> Streams:
    """As many streams as the text has whole windows for, `batch` at most."""
    if len(numbers) < config.window + 1:
        raise DataError(
            f"{path} is too short to validate on: its last part (--valid-fraction "
            f"{config.valid_fraction:g}) has "
            f"{len(numbers)} {config.symbols}, and one window needs {config.window + 1}; lower --window, "
            f"raise "
            f"--valid-fraction, or train without validation (--valid-fraction 0)"
        )
    batch = min(config.batch, (len(numbers) - 1) // config.window)
    return Streams(numbers, batch, config.window, config.device)
