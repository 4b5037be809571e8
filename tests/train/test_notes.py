"""Piano rolls from numpy archives: their two forms, what is predicted, what is said of bad ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from throughtime.errors import DataError
from throughtime.train import NotesConfig
from throughtime.train.data import prepare
from throughtime.train.data.notes import read_archive


def rolls(lengths: list[int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (sum(lengths), 16)).astype(np.uint8)


def saved(place: Path, **arrays: Any) -> Path:
    np.savez(place / "a.npz", **arrays)
    return place / "a.npz"


def test_both_forms_give_the_same_pieces(tmp_path: Path) -> None:
    steps = rolls([4, 1, 3])
    plain = read_archive(saved(tmp_path, train=steps.astype(float), train_len=[4, 1, 3]))[0]
    bits = read_archive(saved(tmp_path, train_bits=np.packbits(steps, axis=1), train_len=[4, 1, 3]))[0]
    assert plain.keys() == bits.keys() == {"train"}
    assert [len(p) for p in plain["train"]] == [4, 3]  # a piece of one step has nothing to predict
    for one, other, want in zip(plain["train"], bits["train"], (steps[:4], steps[5:]), strict=True):
        assert torch.equal(one, other) and np.array_equal(one.numpy(), want)


def test_each_step_is_predicted_from_those_before(tmp_path: Path) -> None:
    steps = rolls([5, 3])
    archive = saved(tmp_path, train=steps, train_len=[5, 3], valid=rolls([4], 1), valid_len=[4])
    data = prepare(NotesConfig(str(archive), batch=2))
    assert data.valid is not None and data.test is None
    batch = data.train.batch(0)
    assert batch.lengths is not None and batch.lengths.tolist() == [4, 2] and batch.count == 6
    assert np.array_equal(batch.inputs[:, 0].numpy(), steps[:4]) and np.array_equal(batch.targets[:, 0], steps[1:5])
    assert np.array_equal(batch.targets[:2, 1], steps[6:8])
    assert np.array_equal(data.valid.batch(0).targets[:, 0], rolls([4], 1)[1:])


def test_parts_that_are_missing_are_taken_from_the_training_part(tmp_path: Path) -> None:
    lengths = list(range(2, 22))
    archive = saved(tmp_path, train=rolls(lengths), train_len=lengths)
    data = prepare(NotesConfig(str(archive), batch=20, valid_fraction=0.1, test_fraction=0.2))
    parts = [data.train, data.valid, data.test]
    sizes = [sorted(len(x) + 1 for x in part.inputs) for part in parts]  # type: ignore[union-attr]
    assert [len(s) for s in sizes] == [14, 2, 4] and sorted(n for s in sizes for n in s) == lengths


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": [1]}, "has no pieces to train on; its arrays are x"),
        ({"train": rolls([4])}, "has train but not train_len"),
        ({"train": rolls([4]), "train_len": [3]}, "must be whole numbers that add up to the 4 steps"),
        ({"train": rolls([4]), "train_len": [5, -1]}, "must be whole numbers"),
        ({"train": 2 * rolls([4]), "train_len": [4]}, "must hold 0 and 1 only"),
        ({"train": np.zeros(4), "train_len": [4]}, "must be [steps, notes]; it is float64 [4]"),
        ({"train_bits": np.zeros((4, 2)), "train_len": [4]}, "must be [steps, notes / 8] of uint8"),
        ({"train": rolls([1]), "train_len": [1]}, "has no pieces to train on"),
        ({"train": np.array([[{}]]), "train_len": [1]}, "is no numpy archive that can be read"),
        (
            {"train": rolls([4]), "train_len": [4], "valid": np.zeros((2, 3)), "valid_len": [2]},
            "its parts have 3 and 16 notes",
        ),
        ({"train": rolls([4]), "train_len": [4]}, "which leaves none for the part 'valid'"),
    ],
)
def test_an_archive_that_cannot_be_used_says_why(tmp_path: Path, arrays: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError) as caught:
        prepare(NotesConfig(str(saved(tmp_path, **arrays))))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_an_archive_never_runs_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.mkdir, (tmp_path / "owned",)

    archive = saved(tmp_path, train=np.array([Evil()], dtype=object), train_len=[1])
    with pytest.raises(DataError, match="is no numpy archive that can be read"):
        prepare(NotesConfig(str(archive)))
    assert not (tmp_path / "owned").exists()


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_any_damage_gives_one_line(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    place = tmp_path_factory.mktemp("fuzz")
    archive = saved(place, train=rolls([6] * 9), train_len=[6] * 9)
    raw = bytearray(archive.read_bytes())
    cut = data.draw(st.integers(0, len(raw)))
    archive.write_bytes(bytes(raw[:cut]) + data.draw(st.binary(max_size=12)) + bytes(raw[cut + 4 :]))
    try:
        prepare(NotesConfig(str(archive)))
    except DataError as error:
        assert "\n" not in str(error)
