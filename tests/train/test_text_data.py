"""Tests of throughtime.train.data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from throughtime.errors import DataError
from throughtime.train.data import Streams, Vocabulary, read_text
from throughtime.train.kinds import LMConfig


def config(path: Path, **options: object) -> LMConfig:
    return LMConfig(str(path), **{"window": 4, "batch": 2, "valid_fraction": 0.0, **options})  # type: ignore[arg-type]


@settings(deadline=None)
@given(n=st.integers(2, 120), batch=st.integers(1, 7), window=st.integers(1, 9))
def test_streams_are_contiguous_and_their_targets_one_ahead(n: int, batch: int, window: int) -> None:
    numbers = torch.arange(n)
    streams = Streams(numbers[:-1], numbers[1:], batch, window)
    length = (n - 1) // batch
    assert len(streams) == length // window
    for b in range(batch):
        parts = [streams.window(i) for i in range(len(streams))]
        seen = [v for x, _ in parts for v in x[:, b].tolist()]
        assert seen == list(range(b * length, b * length + len(streams) * window))
        assert all(torch.equal(y, x + 1) and x.shape == (window, batch) for x, y in parts)


def test_the_split_is_in_time_and_the_vocabulary_that_of_all(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("a" * 90 + "zb" * 5)
    text = read_text(config(path, valid_fraction=0.1))
    assert text.vocabulary.characters == "abz"
    assert text.valid is not None
    assert {int(v) for i in range(len(text.train)) for v in text.train.window(i)[0].flatten()} == {0}
    x, y = text.valid.window(0)
    assert (text.vocabulary.decode(x[:, 0].tolist()), text.vocabulary.decode(y[:, 0].tolist())) == (
        "zbzb",
        "bzbz",
    )
    assert x.shape == (4, 2)


def test_characters_keep_line_ends_and_letters_of_any_plane(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    content = "a\r\n\u00e9\U0001d11e\x00" * 5
    path.write_bytes(content.encode())
    vocabulary = read_text(config(path)).vocabulary
    assert vocabulary.characters == "\x00\n\ra\u00e9\U0001d11e"
    assert vocabulary.decode(vocabulary.encode(content).tolist()) == content


def test_bytes_take_any_file(tmp_path: Path) -> None:
    path = tmp_path / "t.bin"
    path.write_bytes(bytes(range(256)))
    text = read_text(config(path, symbols="bytes"))
    assert len(text.vocabulary) == 256
    assert text.train.window(0)[0].t().tolist() == [[0, 1, 2, 3], [127, 128, 129, 130]]


def test_a_byte_decoder_waits_for_the_whole_character() -> None:
    decoder = Vocabulary("bytes").decoder()
    assert [decoder.feed(b) for b in "\u00e9a".encode()] == ["", "\u00e9", "a"]
    assert decoder.feed(0xC3) + decoder.close() == "\ufffd"
    assert Vocabulary("bytes").decode([0xFF, 0x61]) == "\ufffda"


def test_bytes_encode_what_a_command_line_could_not_decode() -> None:
    raw = os.fsencode("a") + b"\xff"
    assert Vocabulary("bytes").encode(raw.decode("utf-8", "surrogateescape")).tolist() == [0x61, 0xFF]


def test_unknown_symbols_are_named() -> None:
    with pytest.raises(DataError, match=r"'\?', '\\xe9' are not in the vocabulary, which has the 2 characters"):
        Vocabulary("characters", "ab").encode("a?b\u00e9?")


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        (b"", {}, "is empty"),
        (
            b"abc\xff" + b"a" * 99,
            {},
            "byte 0xff at offset 3 (invalid start byte); read it as bytes with --symbols bytes",
        ),
        (
            b"a" * 8,
            {},
            "8 characters to train on, and one window of 4 steps for each of 2 streams needs 9; lower --batch to 1",
        ),
        (b"a" * 4, {}, "lower --window (to 3 at most, with --batch 1)"),
        (b"a", {}, "needs 9; use a longer text"),
        (
            b"a" * 40,
            {"valid_fraction": 0.1},
            "has 4 characters, and one window needs 5; lower --window, raise --valid",
        ),
        (b"\xff" * 8, {"symbols": "bytes"}, "8 bytes to train on"),
    ],
)
def test_a_text_that_cannot_be_used_says_why(
    tmp_path: Path, content: bytes, options: dict[str, object], says: str
) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_text(config(path, **options))
    assert says in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_way_out_of_a_short_text_leads_out(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b"a" * 30)
    with pytest.raises(DataError, match="lower --batch to 7 or less"):
        read_text(config(path, batch=8))
    assert len(read_text(config(path, batch=7)).train) == 1
    with pytest.raises(DataError, match="to 29 at most, with --batch 1"):
        read_text(config(path, window=40))
    assert len(read_text(config(path, window=29, batch=1)).train) == 1


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no files in it; name a text file, or a folder of them"):
        read_text(config(tmp_path))
    with pytest.raises(DataError, match="there is no file"):
        read_text(config(tmp_path / "no"))
    with pytest.raises(DataError, match="cannot read"):
        read_text(LMConfig("a\x00b"))
    with pytest.raises(DataError, match="cannot read"):
        read_text(LMConfig("a" * 5000))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="is not a regular file"):
        read_text(config(tmp_path / "pipe"))


def test_another_text_does_not_fit_an_old_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("abc" * 10)
    with pytest.raises(DataError, match="it is another text"):
        read_text(config(path), Vocabulary("characters", "ab"))


@settings(deadline=None, max_examples=60)
@given(content=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda s: s.encode("utf-8", "replace"))))
def test_any_bytes_are_read_or_refused_with_a_reason(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "t"
    path.write_bytes(content)
    for symbols in ("characters", "bytes"):
        try:
            text = read_text(config(path, symbols=symbols, valid_fraction=0.3))
        except DataError as error:
            n = len(content if symbols == "bytes" else content.decode("utf-8", "replace"))
            short = n - round(0.3 * n) < 9 or round(0.3 * n) < 5
            assert short or (symbols == "characters" and "is not UTF-8" in str(error))
        else:
            assert all(int(text.train.window(i)[0].max()) < len(text.vocabulary) for i in range(len(text.train)))
