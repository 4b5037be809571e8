"""`throughtime train KIND`, `evaluate`, `forecast`: words in, text, files and exit status out."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from throughtime.cli import main

Capture = pytest.CaptureFixture[str]
SIZES = ["--hidden", "6", "--steps", "12", "--valid-every", "6", "--threads", "1"]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "waves.csv").write_text("s\n" + "".join(f"{math.sin(t / 3):.4f}\n" for t in range(90)))
    return tmp_path


def run(capsys: Capture, *words: str) -> list[str]:
    assert main(list(words)) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def fails(capsys: Capture, words: list[str], says: str) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("throughtime: error: ") and err.count("\n") == 1 and says in err


def test_forecast(capsys: Capture, place: Path) -> None:
    lines = run(capsys, "train", "forecast", "waves.csv", "--target", "s", "--horizon", "2", "--window", "6", *SIZES)
    assert lines[0] == "run runs/waves-lstm"
    assert lines[1].startswith("lstm  step 6/12  ") and " loss  valid " in lines[1]
    assert lines[3].startswith("watch: at step ") and lines[3].endswith(", of 6 in a window")
    assert lines[4].startswith("best validation: ") and lines[4].endswith("nats per value, at step 12")
    assert lines[5] == "see what comes next: throughtime forecast runs/waves-lstm"
    table = run(capsys, "forecast", "runs/waves-lstm", "--quantiles", "0.25", "0.75")
    assert table[0] == "ahead,mean,q0.25,q0.75" and [line.split(",")[0] for line in table[1:]] == ["1", "2"]
    assert run(capsys, "forecast", "runs/waves-lstm", "--out", "f.csv") == ["f.csv"]
    assert (place / "f.csv").read_text().startswith("ahead,mean,q0.1,q0.5,q0.9\n1,")
    measured = run(capsys, "evaluate", "runs/waves-lstm")
    assert measured[0] == "step-000012 on valid" and any(line.startswith("crps ") for line in measured)
    plain = json.loads("".join(run(capsys, "evaluate", "runs/waves-lstm", "--json", "--data", "waves.csv")))
    assert plain["on"] == "waves.csv" and "mae of the last value" in plain["references"]
    # Continued with or without the name of the kind, with the options that the kind has.
    assert run(capsys, "train", "--resume", "runs/waves-lstm", "--steps", "14")[0].endswith("from step 12")
    again = run(capsys, "train", "forecast", "--resume", "runs/waves-lstm", "--steps", "16", "--lr", "0.001")
    assert again[0] == "continuing runs/waves-lstm from step 14"
    saved = json.loads((place / "runs/waves-lstm/config.json").read_text())
    assert saved["kind"] == "forecast" and saved["config"]["horizon"] == 2 and saved["config"]["steps"] == 16
    fails(capsys, ["train", "forecast", "--resume", "runs/waves-lstm", "--horizon", "3"], "horizon cannot change")
    fails(capsys, ["train", "notes", "--resume", "runs/waves-lstm"], "is a run of the kind forecast, not notes")
    fails(capsys, ["sample", "runs/waves-lstm"], "only runs on text write text")
    fails(capsys, ["forecast", "runs/waves-lstm", "--quantiles", "2"], "a quantile is between 0 and 1")
    fails(capsys, ["evaluate", "runs/waves-lstm", "--part", "test"], "kept no part of its data for test")
    told = run(capsys, "diagnose", "runs/waves-lstm", "--no-use")
    assert told[0].startswith("[") and told[-1].startswith("saved to runs/waves-lstm/diagnosis.safetensors")
    assert any("steps are too few to see a dependency" in line for line in told)  # said, and not made up
    assert run(capsys, "report", "runs/waves-lstm")[-1].endswith("runs/waves-lstm/report.html")
    assert "nats per value" in (place / "runs/waves-lstm/report.html").read_text()


def test_task_label_and_notes(capsys: Capture, place: Path) -> None:
    lines = run(capsys, "train", "task", "adding", "--lag", "5", "--batch", "20", *SIZES)
    assert lines[0] == "run runs/adding-5-lstm" and lines[-1].endswith("throughtime evaluate runs/adding-5-lstm")
    measured = run(capsys, "evaluate", "runs/adding-5-lstm", "--part", "valid")
    assert any(line.startswith("loss without memory") and "0.1667" in line for line in measured)

    (place / "w.csv").write_text("w,k\n" + "".join(f"{'ab'[n % 2] * 3}{n},{n % 2}\n" for n in range(40)))
    lines = run(capsys, "train", "label", "w.csv", "--label", "k", "--characters", "w", "--bidirectional", *SIZES)
    assert "nats per sequence" in lines[-2]

    np.savez("r.npz", train=np.tile(np.eye(8, dtype=np.uint8), (10, 1)), train_len=[8] * 10)
    assert "nats per step" in run(capsys, "train", "notes", "r.npz", *SIZES)[-2]


def test_sampling_from_the_likeliest_only(capsys: Capture, place: Path) -> None:
    (place / "t.txt").write_text("abcdefgh" * 40)
    run(capsys, "train", "t.txt", "--window", "8", "--batch", "2", "--embedding", "4", *SIZES)
    sample = ["sample", "runs/t-lstm", "--length", "40"]
    greedy = run(capsys, *sample, "--temperature", "0")
    assert run(capsys, *sample, "--top-k", "1") == run(capsys, *sample, "--top-p", "0.0001") == greedy
    assert run(capsys, *sample, "--top-k", "3") != greedy
    fails(capsys, [*sample, "--top-k", "-1"], "top_k must be at least 1, or 0 for all symbols")
    fails(capsys, [*sample, "--top-p", "0"], "top_p must be greater than 0 and at most 1")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "forecast"], "name a table to learn from (throughtime train forecast TABLE --target COLUMN)"),
        (["train", "forecast", "waves.csv"], "say which column with --target"),
        (["train", "forecast", "waves.csv", "--target", "z"], "has no column 'z'; its columns are 's'"),
        (["train", "forecast", "no.csv", "--target", "z"], "there is no file "),
        (["train", "forecast", ".", "--target", "z"], "is a directory; name a CSV file"),
        (["train", "label", "waves.csv"], "say which column with --label"),
        (["train", "label", "waves.csv", "--label", "s"], "needs to know the sequences"),
        (["train", "notes", "waves.csv"], "is no numpy archive that can be read"),
        (["train", "task"], "name a task to learn (throughtime train task NAME --lag STEPS)"),
        (["train", "task", "ading"], "there is no task 'ading' (did you mean adding?)"),
        (["evaluate", "no"], "there is no run directory no"),
        (["forecast", "."], "is not a run of throughtime train: it has no config.json"),
    ],
)
def test_what_cannot_be_used_gives_one_line(capsys: Capture, words: list[str], says: str) -> None:
    fails(capsys, words, says)
    assert not Path("runs").exists()


def test_a_text_may_be_named_as_a_kind(capsys: Capture, place: Path) -> None:
    (place / "text").write_text("abcdefgh" * 40)
    sizes = ["--window", "8", "--batch", "2", "--embedding", "4", "--watch-budget", "0", *SIZES]
    lines = run(capsys, "train", "text", "text", *sizes)
    assert lines[0] == "run runs/text-lstm" and not any(line.startswith("watch") for line in lines)
    assert run(capsys, "train", "./text", *sizes)[1:-1] != [] and not (place / "runs/text-lstm/watch.jsonl").exists()
    texts = [(place / f"runs/{name}/log.jsonl").read_text() for name in ("text-lstm", "text-lstm-2")]
    logs = [[json.loads(line)["loss"] for line in text.splitlines()] for text in texts]
    assert logs[0] == logs[1] and len(logs[0]) == 12
    assert run(capsys, "train", "text", "--resume", "runs/text-lstm", "--steps", "14")[0].endswith("from step 12")
    fails(capsys, ["train", "text"], "name a text file to learn from (throughtime train FILE)")
    fails(capsys, ["train", "task", "--resume", "runs/text-lstm"], "is a run of the kind text, not task")


def test_what_the_guard_did_is_told_at_once_and_at_the_end(capsys: Capture, place: Path) -> None:
    (place / "t.txt").write_text("the cat sat on a mat.\n" * 40)
    loop = ["--cell", "rnn-relu", "--optimiser", "sgd", "--lr", "8", "--clip-norm", "0"]
    words = [*loop, "--window", "8", "--batch", "4", "--watch-budget", "0"]
    lines = run(capsys, "train", "t.txt", *words, *SIZES)
    told = [line for line in lines if line.startswith("guard: ")]
    assert " at step " in told[0] and told[0].endswith("; that update is left out")
    assert (
        told[-1].startswith("guard: ")
        and " left out" in told[-1]
        and told[-1].endswith("told in runs/t-rnn-relu/guard.jsonl")
    )
    assert len(told) == len((place / "runs/t-rnn-relu/guard.jsonl").read_text().splitlines())  # a line more, a head
    assert main(["train", "t.txt", "--no-guard", *words, *SIZES]) == 1
    assert "the last good checkpoint is" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["text", "forecast", "label", "notes", "task"])
def test_each_kind_has_its_own_help(capsys: Capture, kind: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", kind, "--help"])
    out = capsys.readouterr().out
    assert not end.value.code and out.startswith(f"usage: throughtime train {kind} ") and "--resume RUN" in out
