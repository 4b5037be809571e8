"""throughtime prescribe: for a file with a setup function, for a run, and for what is neither."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import throughtime
from throughtime.cli import main

Capture = pytest.CaptureFixture[str]

SETUP = """
import torch
from torch import nn

class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(2, 4), nn.Linear(4, 2)
    def forward(self, x):
        return self.head(self.rnn(x)[0][-1])

def setup():
    torch.manual_seed(0)
    model = Last()
    batches = [(torch.randn(5, 8, 2), torch.randint(2, (8,))) for _ in range(8)]
    return model, batches, lambda out, y: nn.functional.cross_entropy(out, y), 0.01

def three():
    return setup()[:3]
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    (tmp_path / "mine.py").write_text(SETUP)
    yield tmp_path
    sys.modules.pop("mine", None)


def test_a_model_of_ones_own(file: Path, capsys: Capture) -> None:
    """On noise there is nothing to remember, and nothing to change; the trials run in processes of their own."""
    assert main(["prescribe", "mine.py", "--steps", "3", "--seeds", "3", "--out", "found.safetensors"]) == 0
    out = capsys.readouterr().out
    assert "3 seeds, 3 steps each" in out and "\n  nothing " in out
    assert str(throughtime.Prescription.load("found.safetensors")) in out


def test_a_run(text_file: Path, options: list[str], capsys: Capture) -> None:
    assert main(["train", "cats.txt", *options]) == 0
    for words in ([], ["--checkpoint", "last"]):
        capsys.readouterr()
        assert main(["prescribe", "runs/cats-lstm", "--steps", "4", "--seeds", "3", *words]) == 0
        out = capsys.readouterr().out
        assert "3 seeds, 4 steps each" in out and "\n  nothing " in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["no.py"], "there is no file and no run directory no.py"),
        (["mine.py:other"], "mine.py has no function other"),
        (["mine.py:three"], "must return (model, batches, loss, optimiser); came a tuple of 3"),
        (["mine.py", "--seeds", "1"], "seeds must be 3 or more"),
        (["mine.py", "--checkpoint", "last"], "--checkpoint and --text are for the directory of a run"),
        ([".", "--clip", "1"], "a run clips as it was trained"),
        (["."], "config.json"),
    ],
)
def test_refusals_are_one_line(file: Path, capsys: Capture, words: list[str], says: str) -> None:
    assert main(["prescribe", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("throughtime: error: ") and err.count("\n") == 1
    assert says in err
