"""Texts of words, of many files, and larger than is held in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from throughtime.errors import ConfigError, DataError
from throughtime.train import LMConfig, generate, load, train
from throughtime.train.data import TextData, numbers, read_text, reading
from throughtime.train.data.vocabulary import UNKNOWN, Vocabulary, words_of


def config(path: Path, **options: object) -> LMConfig:
    return LMConfig(str(path), **{"window": 4, "batch": 2, "valid_fraction": 0.0, **options})  # type: ignore[arg-type]


def symbols_of(text: TextData) -> torch.Tensor:
    return torch.cat([text.train.inputs, text.train.targets[:, -1:]], 1)[0]


def test_words_are_runs_of_letters_signs_and_line_ends() -> None:
    assert words_of("It's  10 o'clock,\nso (go).") == [
        "It", "'", "s", "10", "o", "'", "clock", ",", "\n", "so", "(", "go", ")", ".",
    ]  # fmt: skip


def test_the_commonest_words_are_known_and_the_others_are_one(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("the cat saw the cat near the dog . " * 4)
    text = read_text(config(path, symbols="words", words=4))
    assert text.vocabulary.words == (UNKNOWN, "the", "cat", ".")
    assert text.vocabulary.encode("the dog saw the cat .").tolist() == [1, 0, 0, 1, 2, 3]
    assert text.vocabulary.decode([1, 2, 3, 1]) == "the cat. the"
    x, y = text.train.window(0)
    assert x[:, 0].tolist() == [1, 2, 0, 1] and y[:, 0].tolist() == [2, 0, 1, 2]


def test_a_model_of_words_trains_and_writes(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("the cat sat on the mat.\n" * 60)
    options = {"embedding": 6, "hidden": 8, "steps": 60, "lr": 0.02, "valid_fraction": 0.1, "symbols": "words"}
    result = train(config(path, **options), tmp_path / "run")
    assert result.unit == "bits per word" and result.history[-1].loss < 0.5 * result.history[0].loss
    assert generate(load(tmp_path / "run"), "the cat", 3, temperature=0) == " sat on the"


def test_a_folder_is_its_files_by_name_with_a_newline_between(tmp_path: Path) -> None:
    for name, content in {"b.txt": "later", "a/x.txt": "first \u00e4", ".hidden": "no", ".git/config": "no"}.items():
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / name).write_text(content)
    for symbols in ("characters", "bytes"):
        text = read_text(config(tmp_path / "f", symbols=symbols, batch=1, window=1))
        assert text.vocabulary.decode(symbols_of(text).tolist()) == "first \u00e4\nlater"
    (tmp_path / "f" / "b.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"b.txt is not UTF-8 text: byte 0xff at offset 0"):
        read_text(config(tmp_path / "f"))


def test_a_run_is_not_written_into_the_folder_that_it_reads(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("abc" * 50)
    with pytest.raises(ConfigError, match="lies in the folder that is learned from"):
        train(config(tmp_path), tmp_path / "runs" / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["t.txt"]


@pytest.mark.parametrize("symbols", ["characters", "words", "bytes"])
@pytest.mark.parametrize("files", [1, 2])
def test_a_large_text_is_mapped_and_gives_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, symbols: str, files: int
) -> None:
    for n in range(files):
        (tmp_path / "f" / f"{n}.txt").parent.mkdir(exist_ok=True)
        (tmp_path / "f" / f"{n}.txt").write_text(
            "".join(f"w\u00f6rd{i % 7} and {i % 5}, then\n" for i in range(40 + n))
        )
    path = tmp_path / "f" if files > 1 else tmp_path / "f" / "0.txt"
    small = read_text(config(path, symbols=symbols))
    monkeypatch.setattr(numbers, "LARGE", 10)
    monkeypatch.setattr("throughtime.train.data.text.LARGE", 10)
    monkeypatch.setattr(reading, "CHUNK", 13)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    large = read_text(config(path, symbols=symbols))
    assert large.vocabulary == small.vocabulary and large.sha256 == small.sha256
    assert torch.equal(symbols_of(large), symbols_of(small))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f"]  # the file of the numbers has no name


def test_mapping_a_file_does_not_change_it(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(b"abc" * 10)
    mapped = numbers.map_bytes(path, 30)
    mapped[0] = 0
    assert path.read_bytes() == b"abc" * 10
    with pytest.raises(DataError, match="cannot map"):
        numbers.map_bytes(tmp_path / "no", 30)


def test_a_full_disk_says_where_room_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "LARGE", 10)
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(numbers.tempfile, "TemporaryFile", full)
    path = tmp_path / "t"
    path.write_text("abc" * 10)
    with pytest.raises(DataError, match=r"numbers in .*: No space left on device; set TMPDIR"):
        read_text(config(path))


@settings(deadline=None, max_examples=50)
@given(text=st.text(max_size=40), chunk=st.integers(1, 5))
def test_pieces_of_bytes_decode_as_the_whole(tmp_path_factory: pytest.TempPathFactory, text: str, chunk: int) -> None:
    raw = text.encode("utf-8", "replace")
    path = tmp_path_factory.mktemp("t") / "t"
    path.write_bytes(raw)
    assert "".join(reading.decode_chunks(path, reading.read_chunks(path, chunk))) == raw.decode()
    bad = raw + b"\xff"
    path.write_bytes(bad)
    with pytest.raises(DataError, match=rf"byte 0xff at offset {len(raw)} "):
        list(reading.decode_chunks(path, reading.read_chunks(path, chunk)))


def test_three_parts_in_the_order_of_time(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text("a" * 60 + "b" * 20 + "c" * 20)
    text = read_text(config(path, valid_fraction=0.2, test_fraction=0.2, batch=1))
    assert text.valid is not None and text.test is not None
    parts = [set(part.inputs.flatten().tolist()) for part in (text.train, text.valid, text.test)]
    assert parts == [{0}, {1}, {2}]


def test_an_unknown_word_is_encoded_as_such() -> None:
    assert Vocabulary("words", words=(UNKNOWN, "a")).encode("a b").tolist() == [1, 0]
