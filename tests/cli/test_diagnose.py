"""`throughtime diagnose`: the verdict on a run, in a terminal and in a file."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

import throughtime
from throughtime.cli import main
from throughtime.errors import ConfigError, DataError
from throughtime.train import LMConfig, train
from throughtime.train.diagnosing import diagnose_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    text = path / "cats.txt"
    text.write_text("".join(random.Random(0).choices(["the cat ", "sat on ", "a mat.\n"], k=2000)))
    config = LMConfig(str(text), embedding=6, hidden=8, window=16, batch=8, steps=12, valid_every=6, threads=1, lr=1e-2)
    return train(config, path / "a").path


def test_a_run_is_diagnosed_printed_and_saved(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(run), "--batches", "5"]) == 0
    out = capsys.readouterr().out
    found = throughtime.load_diagnosis(run / "diagnosis.safetensors")
    assert out.startswith(f"[{found.case}] ") and "gradient  |" in out and "data      |" in out and "use       |" in out
    assert found.data is not None and found.data.unit == "bits"
    assert found.horizons.window == 16 and found.horizons.gradient_interval is not None
    assert found.use is not None and found.updates is not None


def test_elsewhere_and_less(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "d.safetensors"
    moved = tmp_path / "moved.txt"
    text = run.parent / "cats.txt"
    moved.write_bytes(text.read_bytes())
    assert main(["diagnose", str(run), "--no-use", "--batches", "1", "--text", str(moved), "--out", str(out)]) == 0
    found = throughtime.load_diagnosis(out)
    assert found.use is None and found.measured[0].interval is None


def test_what_cannot_be_diagnosed_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.txt"
    other.write_text("the cat sat on a mat.\n" * 100)
    for words, says in [
        ([str(tmp_path / "none")], "there is no run directory"),
        ([str(run), "--checkpoint", "step-999999"], "there is no checkpoint"),
        ([str(run), "--text", str(tmp_path / "gone.txt")], "there is no file"),
        ([str(run), "--text", str(other)], "has changed"),
        ([str(run), "--batches", "0"], "batches must be at least 1"),
    ]:
        assert main(["diagnose", *words]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("throughtime: error: ") and err.count("\n") == 1 and says in err
    with pytest.raises(ConfigError):
        diagnose_run(run, batches=0)
    with pytest.raises(DataError):
        diagnose_run(run, text=tmp_path / "gone.txt")


def test_the_models_own_state_and_random_numbers_stay(run: Path) -> None:
    before = torch.get_rng_state()
    first, second = (diagnose_run(run, batches=2, use=False) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert str(first) == str(second)
