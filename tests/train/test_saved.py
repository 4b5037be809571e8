"""Datasets of Hugging Face on disk: as tables with labels, with splits of their own, as series, as text; and broken."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from tests.ecosystem.snippets import under

from throughtime.cli import main
from throughtime.errors import ConfigError, DataError
from throughtime.train import ForecastConfig, LabelConfig, LMConfig, evaluate, resume, save_dataset, train
from throughtime.train.data import labels
from throughtime.train.data.prepare import prepare
from throughtime.train.data.table import read_table

datasets = pytest.importorskip("datasets", reason="an optional extra")

NAMES = [("anna", "it"), ("bob", "en"), ("carlo", "it"), ("dick", "en"), ("elena", "it"), ("fred", "en")] * 4


def names(rows=NAMES):
    features = datasets.Features(
        {"name": datasets.Value("string"), "language": datasets.ClassLabel(names=["en", "it"])}
    )
    table = {"name": [n for n, _ in rows], "language": [k for _, k in rows]}
    return datasets.Dataset.from_dict(table, features=features)


def label_config(path, **changes):
    options = {
        "label": "language", "characters": "name", "hidden": 6, "embedding": 4, "batch": 4, "steps": 4, "threads": 1,
        "valid_fraction": 0.25, "valid_every": 4, "checkpoint_every": 2,
    }  # fmt: skip
    return LabelConfig(str(path), **{**options, **changes})


def test_a_dataset_learns_as_the_same_table_in_csv_does(tmp_path):
    config = label_config(save_dataset(names(), tmp_path / "names"))
    (tmp_path / "names.csv").write_text("name,language\n" + "".join(f"{n},{k}\n" for n, k in NAMES))
    result = train(config, tmp_path / "run")
    other = train(label_config(tmp_path / "names.csv"), tmp_path / "run-csv")
    assert [r.loss for r in result.history] == [r.loss for r in other.history]
    assert evaluate(result.path, data=str(tmp_path / "names.csv")).measures
    assert len(resume(result.path, steps=6).history) == 6


def test_splits_are_kept(tmp_path):
    parts = {"train": names(NAMES[:12]), "validation": names(NAMES[12:15]), "test": names(NAMES[15:20])}
    path = save_dataset(datasets.DatasetDict(parts), tmp_path / "names")
    data = prepare(label_config(path))
    assert [len(s.inputs) for s in (data.train, data.valid, data.test)] == [12, 3, 5]
    only_train = prepare(label_config(Path(path) / "train"))
    assert [len(s.inputs) for s in (only_train.train, only_train.valid)] == [9, 3] and only_train.test is None
    parts.pop("validation")
    data = prepare(label_config(save_dataset(datasets.DatasetDict(parts), tmp_path / "two")))
    assert [len(s.inputs) for s in (data.train, data.valid, data.test)] == [9, 3, 5]


def test_lists_are_sequences(tmp_path):
    torch.manual_seed(0)
    lengths = [3, 5, 2, 4, 6, 3, 2, 5]
    rows = {
        "x": [torch.randn(n, 2).tolist() for n in lengths],
        "speed": [torch.randn(n).tolist() for n in lengths],
        "tag": [[i % 2 for i in range(n)] for n in lengths],
        "kind": ["a", "b"] * 4,
    }
    features = datasets.Features({
        "x": datasets.List(datasets.List(datasets.Value("float32"))), "speed": datasets.List(datasets.Value("float64")),
        "tag": datasets.List(datasets.ClassLabel(names=["off", "on"])), "kind": datasets.Value("string"),
    })  # fmt: skip
    path = save_dataset(datasets.Dataset.from_dict(rows, features=features), tmp_path / "steps")
    table = read_table(Path(path))
    assert list(table.columns) == ["row", "x.0", "x.1", "speed", "tag", "kind"] and len(table) == sum(lengths)
    assert table.columns["row"][:4] == ["0", "0", "0", "1"] and table.columns["tag"][:3] == ["off", "on", "off"]
    found = table.numbers(["x.0", "x.1", "speed"])
    torch.testing.assert_close(found[:3, :2], torch.tensor(rows["x"][0], dtype=torch.float64), rtol=1e-6, atol=0)
    config = label_config(path, characters="", sequence="row", label="kind", inputs="x.0,x.1,speed", embedding=0)
    data = prepare(config)
    assert sorted(len(x) for s in (data.train, data.valid) for x in s.inputs) == sorted(lengths)
    steps = prepare(
        label_config(path, characters="", sequence="row", label="tag", per="step", inputs="speed", embedding=0)
    )
    assert steps.schema.labels == ("off", "on") and sum(len(y) for y in steps.train.targets) > 12


def test_a_row_number_in_two_splits_is_two_sequences(tmp_path):
    one = datasets.Dataset.from_dict({"v": [1.0, 2.0, 3.0, 4.0], "s": [0, 0, 1, 1], "kind": ["a", "a", "b", "b"]})
    path = save_dataset(datasets.DatasetDict({"train": one, "test": one}), tmp_path / "both")
    table = read_table(Path(path), splits=True)
    config = label_config(path, characters="", sequence="s", label="kind", inputs="v", embedding=0)
    groups = labels._groups(table, config)
    assert [rows.tolist() for rows in groups] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_a_series_is_forecast(tmp_path):
    dataset = datasets.Dataset.from_dict({"sales": [float(i % 7) for i in range(80)]})
    path = save_dataset(dataset, tmp_path / "sales")
    result = train(ForecastConfig(path, target="sales", hidden=4, window=8, steps=2, threads=1), tmp_path / "run")
    assert len(result.history) == 2
    both = save_dataset(datasets.DatasetDict({"train": dataset, "test": dataset}), tmp_path / "both")
    with pytest.raises(DataError, match=r"several splits.*both/train"):
        prepare(ForecastConfig(both, target="sales"))


@pytest.mark.parametrize("symbols", ["characters", "bytes", "words"])
def test_a_column_is_a_text(tmp_path, symbols):
    rows = [f"line {i} of mäny" for i in range(2500)]  # more than are read at once
    path = save_dataset(datasets.Dataset.from_dict({"text": rows, "n": list(range(2500))}), tmp_path / "lines")
    (tmp_path / "lines.txt").write_text("\n".join(rows), encoding="utf-8")
    config = LMConfig(path, column="text", symbols=symbols, batch=4, window=8)
    found, same = prepare(config), prepare(LMConfig(str(tmp_path / "lines.txt"), symbols=symbols, batch=4, window=8))
    assert found.schema == same.schema and found.sha256 == same.sha256
    for part in ("train", "valid"):
        one, other = getattr(found, part), getattr(same, part)
        assert len(one) == len(other)
        assert all(torch.equal(one.batch(i).inputs, other.batch(i).inputs) for i in range(0, len(one), 7))


def test_from_the_command_line(tmp_path, capsys):
    path = save_dataset(names(), tmp_path / "names")
    words = f"train label {path} --label language --characters name --hidden 4 --steps 2 --batch 4 --threads 1".split()
    assert main([*words, "--run", str(tmp_path / "run")]) == 0 and main(["evaluate", str(tmp_path / "run")]) == 0
    words = f"train {path} --column name --hidden 4 --window 4 --batch 2 --steps 2 --threads 1".split()
    assert main([*words, "--run", str(tmp_path / "text")]) == 0
    assert main(["train", path]) == 2
    assert "no column '' of text; name one with --column. Of text are: 'name'" in capsys.readouterr().err


def test_a_changed_dataset_is_seen(tmp_path):
    result = train(label_config(save_dataset(names(), tmp_path / "names")), tmp_path / "run")
    (tmp_path / "names").rename(tmp_path / "old")
    save_dataset(names(NAMES[1:] + NAMES[:1]), tmp_path / "names")
    with pytest.raises(DataError, match="has changed since the run"):
        resume(result.path, steps=6)


def test_saving(tmp_path):
    path = save_dataset(names(), tmp_path / "a/names")
    assert save_dataset(names(), path) == path  # the same again
    with pytest.raises(DataError, match="holds something else"):
        save_dataset(names(NAMES[:5]), path)
    with pytest.raises(ConfigError, match=r"expected a datasets\.Dataset or DatasetDict; came list"):
        save_dataset([1], tmp_path / "b")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["names"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"x": [[1.0], [1.0, 2.0]], "y": [[1], [1]]}, "the lists of row 2 have no length in common"),
        ({"x": [[1.0], []]}, "the lists of row 2 have no length in common, or none at all"),
        ({"x": [[1.0]], "row": [1]}, "a column named 'row'"),
        ({"x": [[[1.0, 2.0]], [[1.0]]]}, "not all of one width"),
    ],
)
def test_lists_that_make_no_table(rows, message, tmp_path):
    path = save_dataset(datasets.Dataset.from_dict(rows), tmp_path / "bad")
    with pytest.raises(DataError, match=message):
        read_table(Path(path))


def test_splits_that_are_not_known(tmp_path):
    path = save_dataset(datasets.DatasetDict({"train": names(), "unsupervised": names()}), tmp_path / "names")
    with pytest.raises(DataError, match=r"has the splits train, unsupervised; there must be train.*names/train"):
        prepare(label_config(path))
    with pytest.raises(DataError, match="several splits, and a text is cut in time"):
        splits = datasets.DatasetDict({"train": names(), "test": names()})
        prepare(LMConfig(save_dataset(splits, tmp_path / "more"), column="name"))


@pytest.mark.parametrize("what", ["cut", "state", "info", "gone"])
def test_damaged_datasets_are_refused_in_one_line(what, tmp_path):
    path = Path(save_dataset(names(), tmp_path / "names"))
    arrow = path / json.loads((path / "state.json").read_text())["_data_files"][0]["filename"]
    if what == "cut":
        arrow.write_bytes(arrow.read_bytes()[: arrow.stat().st_size // 2])
    elif what == "gone":
        arrow.unlink()
    else:
        (path / {"state": "state.json", "info": "dataset_info.json"}[what]).write_text(
            '{"_data_files": 3, "features": 4}'
        )
    with pytest.raises(DataError) as raised:
        prepare(label_config(path))
    assert "names" in str(raised.value) and "\n" not in str(raised.value)


def test_without_the_package(tmp_path, monkeypatch):
    path = save_dataset(names(), tmp_path / "names")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install throughtime\[datasets\]"):
        prepare(label_config(path))


def test_the_page_is_true(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(under("Hugging Face datasets"), {"dataset": names(NAMES * 3)})
    assert (tmp_path / "data/names/state.json").is_file() and (tmp_path / "runs/names/log.jsonl").is_file()


def test_a_column_of_what_is_no_dataset(tmp_path):
    (tmp_path / "x.txt").write_text("abc" * 100)
    with pytest.raises(DataError, match=r"x\.txt is no saved dataset, and --column names a column of one"):
        prepare(LMConfig(str(tmp_path / "x.txt"), column="text"))
