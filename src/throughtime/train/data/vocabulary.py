"""The symbols of a text model and their numbers: bytes, characters or words."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from throughtime.errors import DataError

UNKNOWN = "<unk>"
"""The word that stands for all that are not in the vocabulary."""
_WORDS = re.compile(r"\n|\w+|[^\w\s]")
_NO_SPACE_BEFORE = frozenset(".,;:!?)]}%\n")
_NO_SPACE_AFTER = frozenset("([{\n")


@dataclass(frozen=True)
class Vocabulary:
    """The symbols of a model: the 256 bytes, a text's characters (sorted), or its commonest words.

    A word is a run of letters and digits, any other sign that is not white space, or the end of a line; the first
    one is `UNKNOWN`.
    """

    kind: str
    characters: str = ""
    words: tuple[str, ...] = ()

    def __len__(self) -> int:
        return {"characters": len(self.characters), "words": len(self.words)}.get(self.kind, 256)

    def encode(self, text: str) -> Tensor:
        """The numbers [T] of the symbols of `text`; raises `DataError` that names unknown characters."""
        if self.kind == "bytes":
            try:  # a command line hands bytes that are no UTF-8 over as surrogates
                return torch.tensor(list(text.encode("utf-8", "surrogateescape")), dtype=torch.long)
            except UnicodeEncodeError as error:
                raise DataError(f"the text cannot be written as UTF-8: {error.reason}") from None
        if self.kind == "words":
            return torch.tensor([self._number.get(word, 0) for word in words_of(text)], dtype=torch.long)
        unknown = sorted(set(text) - set(self._number))
        if unknown:
            names = ", ".join(map(ascii, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
            raise DataError(
                f"{names} {'is' if len(unknown) == 1 else 'are'} not in the vocabulary, which has the "
                f"{len(self)} characters of the text that the model learned from; leave out what it never saw"
            )
        return torch.tensor([self._number[symbol] for symbol in text], dtype=torch.long)

    def knows(self, symbol: str) -> bool:
        """Whether it is a character or word of this vocabulary."""
        return self.kind == "bytes" or symbol in self._number

    def number(self, symbol: str) -> int | None:
        """The number of one character or word of this vocabulary; None for anything else."""
        return None if self.kind == "bytes" else self._number.get(symbol)

    def decode(self, numbers: Iterable[int]) -> str:
        """The text of a sequence of numbers; bytes that are no UTF-8 show as U+FFFD."""
        decoder = self.decoder()
        return "".join(map(decoder.feed, numbers)) + decoder.close()

    def decoder(self) -> Decoder:
        """Decodes number by number, for text that is shown while it is written."""
        return Decoder(self)

    @cached_property
    def _number(self) -> dict[str, int]:
        return {symbol: i for i, symbol in enumerate(self.words or self.characters)}


class Decoder:
    """Turns numbers into text one at a time; a character of several bytes appears with its last one.

    Between words a space is put, but not before a full stop and the like: how they stood in the text is not known.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._symbols = vocabulary.words or vocabulary.characters
        self._words = vocabulary.kind == "words"
        self._last = "\n"
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, number: int) -> str:
        """The text that is complete now that `number` came."""
        if not self._symbols:
            return self._utf8.decode(bytes([number]))
        symbol = self._symbols[number]
        if not self._words:
            return symbol
        glued = symbol in _NO_SPACE_BEFORE or self._last in _NO_SPACE_AFTER
        self._last = symbol
        return symbol if glued else " " + symbol

    def close(self) -> str:
        """What stands for a character that was left incomplete."""
        return self._utf8.decode(b"", final=True)


def words_of(text: str) -> list[str]:
    """The words of a text, in order."""
    return _WORDS.findall(text)
