"""Runs as files for other programs: they are usable with nothing but what is in the file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from throughtime import cli
from throughtime.train import (
    ForecastConfig,
    LabelConfig,
    LMConfig,
    NotesConfig,
    Online,
    TaskConfig,
    export,
    forecast,
    load,
    train,
)
from throughtime.train.exporting import METADATA

SMALL: dict[str, Any] = {"hidden": 5, "steps": 2, "valid_every": 2, "lr": 0.02, "threads": 1}


def text_run(place: Path, **options: Any) -> Path:
    (place / "t.txt").write_text("abcabd\n" * 60)
    config = LMConfig(str(place / "t.txt"), window=6, batch=2, embedding=4, **{**SMALL, **options})
    return train(config, place / "run").path


def test_a_language_model_as_onnx_goes_on_symbol_by_symbol(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, file = text_run(tmp_path, layers=2, skip=True, dropout=0.3), tmp_path / "m.onnx"
    assert cli.main(["export", str(run), str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(file) and lines[1].split(maxsplit=3) == ["in", "input", "int64", "[steps, batch]"]
    assert lines[5].split(maxsplit=3) == ["out", "h_out", "float32", "[2, batch, 5]"]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    meaning = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
    assert meaning["schema"]["vocabulary"]["characters"] == "\nabcd" and meaning["head"]["classes"] == 5
    online = Online(load(run))
    h = c = np.zeros((2, 1, 5), dtype=np.float32)
    for symbol in "abcad":
        number = meaning["schema"]["vocabulary"]["characters"].index(symbol)
        y, h, c = session.run(None, {"input": np.array([[number]]), "h": h, "c": c})
        p = np.exp(y[0, 0]) / np.exp(y[0, 0]).sum()
        np.testing.assert_allclose(p, online.step(symbol).numpy(), atol=1e-6)
    assert cli.main(["export", str(run), str(tmp_path / "m.h5")]) == 2
    assert "must end in .onnx or .pt2" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_a_forecast_from_the_file_alone(tmp_path: Path, ending: str) -> None:
    y = np.round(5 + np.sin(np.arange(90) * 2 * math.pi / 6), 4)
    (tmp_path / "y.csv").write_text("n,y\n" + "".join(f"{i % 7},{v}\n" for i, v in enumerate(y)))
    config = ForecastConfig(
        str(tmp_path / "y.csv"), target="y", horizon=3, components=2, window=8, cell="lstm-peephole", **SMALL
    )
    run, file = train(config, tmp_path / "run").path, tmp_path / f"m{ending}"
    assert export(run, file).inputs["input"] == ("float32", ("steps", "batch", 2))
    x, zeros = np.stack([np.arange(90) % 7, y], 1), np.zeros((1, 1, 5), dtype=np.float32)
    if ending == ".onnx":
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        meaning = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
    else:
        files = {METADATA: ""}
        program = torch.export.load(file, extra_files=files)
        meaning = json.loads(files[METADATA])
    scaling, schema, head = meaning["schema"]["inputs"], meaning["schema"], meaning["head"]
    columns = [["n", "y"].index(name) for name in scaling["columns"]]
    given = ((x[:, columns] - scaling["mean"]) / scaling["deviation"]).astype(np.float32)[:, None]
    if ending == ".onnx":
        out = session.run(["output"], {"input": given, "h": zeros, "c": zeros})[0][-1, 0]
    else:
        state = (torch.from_numpy(zeros), torch.from_numpy(zeros))
        out = program.module()(torch.from_numpy(given), state)[0][-1, 0].numpy()
    logits, mean, _ = out.reshape(3, head["leads"], head["components"])
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = np.array(schema["offset"]) + np.array(schema["factor"]) * (weights * mean).sum(-1)
    np.testing.assert_allclose(found, forecast(run).mean, rtol=1e-4)


def test_a_bidirectional_model_has_no_states(tmp_path: Path) -> None:
    words = [("ababa" if n % 2 else "babab")[: 1 + n % 5] for n in range(30)]
    (tmp_path / "w.csv").write_text("w,k\n" + "".join(f"{w},{w[0]}\n" for w in words))
    config = LabelConfig(
        str(tmp_path / "w.csv"), label="k", characters="w", batch=5, bidirectional=True, cell="gru", **SMALL
    )
    run = train(config, tmp_path / "run").path
    found = export(run, tmp_path / "m.pt2")
    assert list(found.inputs) == ["input"] and found.outputs == {"output": ("float32", (1, "batch", 2))}
    x = torch.tensor([[0], [1], [0]])
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(found.path).module()(x), load(run)(x)[0], rtol=0, atol=1e-6)


def test_a_task_whose_answer_is_a_number(tmp_path: Path) -> None:
    run = train(TaskConfig("adding", lag=5, batch=4, cell="additive-memory", **SMALL), tmp_path / "run").path
    assert export(run, tmp_path / "m.pt2").outputs["output"][0] == "float32"


def test_notes(tmp_path: Path) -> None:
    rolls = np.tile(np.eye(8, dtype=np.uint8), (10, 1))
    np.savez(tmp_path / "r.npz", train=rolls, train_len=[16] * 5)
    config = NotesConfig(str(tmp_path / "r.npz"), batch=4, cell="rnn", valid_fraction=0.2, **SMALL)
    found = export(train(config, tmp_path / "run").path, tmp_path / "m.onnx", checkpoint="last")
    assert list(found.inputs) == ["input", "h"] and found.outputs["h_out"] == ("float32", (1, "batch", 5))
