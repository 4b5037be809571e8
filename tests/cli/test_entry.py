"""Tests of throughtime.cli: words in, text and exit status out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import throughtime
from throughtime.cli import main
from throughtime.cli import progress as progress_module

Capture = pytest.CaptureFixture[str]


def fails(capsys: Capture, words: list[str], says: str, status: int = 2) -> None:
    """The command prints one line on stderr, nothing on stdout, and ends with that status."""
    assert main(words) == status
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("throughtime: error: ") and err.count("\n") == 1
    assert says in err


def test_help_and_version_do_not_import_torch() -> None:
    program = """
import sys
from throughtime.cli import main
for words in (["--help"], ["train", "--help"], ["sample", "--help"], ["demo", "--help"]):
    try:
        main(words)
    except SystemExit as end:
        assert not end.code
assert main(["--version"]) == 0
assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": "src"},
    )
    assert done.returncode == 0, done.stderr
    for word in (
        "train",
        "sample",
        "demo",
        "--resume RUN",
        "--symbols {characters,bytes,words}",
        "--temperature FLOAT",
    ):
        assert word in done.stdout
    assert done.stdout.endswith(f"throughtime {throughtime.__version__}\n")


def test_train_sample_and_resume(text_file: Path, options: list[str], capsys: Capture) -> None:
    assert main(["train", "cats.txt", *options]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == "" and lines[0] == "run runs/cats-lstm"
    assert lines[1].startswith("lstm  step 10/20  ") and " bits  valid " in lines[1] and " steps/s  " in lines[1]
    assert lines[2].startswith("lstm  step 20/20  ") and lines[2].endswith("  0:00 left")
    assert lines[3].startswith("watch: at step ") and lines[3].endswith(", of 8 in a window")
    assert lines[4].startswith("best validation: ") and lines[4].endswith(" bits per character, at step 20")
    assert lines[5] == "see what it writes: throughtime sample runs/cats-lstm"
    assert main(["sample", "runs/cats-lstm", "--prompt", "the", "--length", "20", "--seed", "1"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("the") and len(text) == 24
    assert main(["sample", "runs/cats-lstm", "--prompt", "the", "--length", "20", "--seed", "1"]) == 0
    assert capsys.readouterr().out == text

    fails(capsys, ["train", "cats.txt", "--run", "runs/cats-lstm", *options], "runs/cats-lstm already exists")
    fails(capsys, ["train", "--resume", "runs/cats-lstm"], "there is nothing left to do; give more steps")
    fails(capsys, ["train", "--resume", "runs/cats-lstm", "--hidden", "9"], "hidden cannot change")
    fails(capsys, ["train", "cats.txt", "--resume", "runs/cats-lstm", "--run", "x"], "give one of them")
    assert main(["train", "--resume", "runs/cats-lstm", "--steps", "25", "--print-every", "5", "--lr", "0.001"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "continuing runs/cats-lstm from step 20" and lines[1].startswith("lstm  step 25/25  ")
    saved = json.loads(Path("runs/cats-lstm/config.json").read_text())
    assert saved["config"]["hidden"] == 8 and saved["changes"] == [
        {"step": 20, "steps": [20, 25], "lr": [0.002, 0.001]}
    ]


def test_bytes_train_and_sample(text_file: Path, options: list[str], capsys: Capture) -> None:
    text_file.write_bytes(bytes(range(256)) * 5)
    fails(
        capsys,
        ["train", "cats.txt", *options],
        "byte 0x80 at offset 128 (invalid start byte); read it as bytes with --symbols bytes",
    )
    assert main(["train", "cats.txt", "--symbols", "bytes", *options]) == 0
    assert "bits per byte" in capsys.readouterr().out
    assert main(["sample", "runs/cats-lstm", "--length", "30", "--prompt", "\udcff\u00e9"]) == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train"], "name a text file to learn from (throughtime train FILE), or a run to --resume"),
        (["train", "no.txt"], "there is no file "),
        (["train", "empty"], "has no files in it; name a text file"),
        (["train", "cats.txt", "--cell", "lsmt"], "there is no cell 'lsmt' (did you mean lstm?)"),
        (["train", "cats.txt", "--lr", "-1"], "lr must be greater than 0, got -1"),
        (["train", "cats.txt", "--lr", "nan"], "lr must be a finite number"),
        (["train", "cats.txt", "--print-every", "0"], "print_every must be at least 1"),
        (["train", "cats.txt", "--batch", "500"], "lower --batch to "),
        (["train", "cats.txt", "--checkpoint", "best"], "needs --resume"),
        (["train", "cats.txt", "--device", "abacus"], "device 'abacus' cannot be used here"),
        (["train", "--resume", "no"], "there is no run directory no"),
        (["sample", "no"], "there is no run directory no"),
        (["sample", "."], "is not a run of throughtime train: it has no config.json"),
    ],
)
def test_what_cannot_be_used_gives_one_line_and_status_2(
    text_file: Path, options: list[str], capsys: Capture, words: list[str], says: str
) -> None:
    if words[:2] == ["train", "cats.txt"] and not set(words) & set(options):
        words = [*words, *options]
    Path("empty").mkdir()
    fails(capsys, words, says)
    assert not Path("runs").exists()


def test_a_prompt_or_temperature_that_cannot_be_used(text_file: Path, options: list[str], capsys: Capture) -> None:
    assert main(["train", "cats.txt", *options]) == 0
    capsys.readouterr()
    fails(capsys, ["sample", "runs/cats-lstm", "--prompt", "Zo\u00eb"], "'Z', '\\xeb' are not in the vocabulary")
    fails(
        capsys,
        ["sample", "runs/cats-lstm", "--temperature", "-1"],
        "temperature must be finite and at least 0",
    )
    fails(capsys, ["sample", "runs/cats-lstm", "--length", "-1"], "length must be at least 0")
    fails(capsys, ["sample", "runs/cats-lstm", "--checkpoint", "step-000001"], "there are step-0000")


def test_words_that_no_command_has_end_with_status_2(capsys: Capture) -> None:
    for words in ([], ["fly"], ["train", "x", "--wings", "2"], ["train", "x", "--lr", "fast"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 2
        assert "Traceback" not in capsys.readouterr().err


def test_a_run_that_fails_ends_with_status_1(text_file: Path, options: list[str], capsys: Capture) -> None:
    words = ["--cell", "rnn-relu", "--optimiser", "sgd", "--lr", "1e30", "--clip-norm", "0"]
    assert main(["train", "cats.txt", *options, *words]) == 1
    err = capsys.readouterr().err
    assert err.startswith("throughtime: error: the ") and err.count("\n") == 1 and "at step " in err
    Path("file").write_text("")
    fails(capsys, ["train", "cats.txt", "--run", "file/run", *options], "file/run: Not a directory", status=1)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_says_how_to_resume_and_sets_the_status(
    text_file: Path,
    options: list[str],
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    status: int,
) -> None:
    take = progress_module._Row.take

    def take_and_stop(row: progress_module._Row, record: progress_module.StepRecord) -> None:
        take(row, record)
        if record.step == 7:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(progress_module._Row, "take", take_and_stop)
    assert main(["train", "cats.txt", *options]) == status
    err = capsys.readouterr().err
    command = "throughtime train --resume runs/cats-lstm"
    assert err == f"throughtime: stopped at step 7 and saved; continue with: {command}\n"
    monkeypatch.undo()
    os.chdir(text_file.parent)
    assert main(command.split()[1:]) == 0
    assert len(Path("runs/cats-lstm/log.jsonl").read_text().splitlines()) == 20


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_reader_that_leaves_is_no_error_and_a_full_disk_is_one(text_file: Path, options: list[str]) -> None:
    assert main(["train", "cats.txt", *options]) == 0
    sample = f"{sys.executable} -m throughtime sample runs/cats-lstm"
    command = f"{sample} --length 300 | head -c 1; {sample} --length 9 >/dev/full || echo status $? >&2"
    src = str(Path(throughtime.__file__).parents[1])
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": src})
    error = "throughtime: error: [Errno 28] No space left on device\nstatus 1\n"
    assert (done.returncode, done.stderr) == (0, error) and len(done.stdout) == 1


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.binary(max_size=40), st.text(max_size=40).map(str.encode), st.sampled_from([b"a", b"a\n", b"\xff"])
    ),
    repeat=st.sampled_from([1, 10]),
    symbols=st.sampled_from(["bytes", "characters"]),
)
def test_any_file_trains_or_gives_one_line(
    tmp_path_factory: pytest.TempPathFactory, capsys: Capture, content: bytes, repeat: int, symbols: str
) -> None:
    place = tmp_path_factory.mktemp("fuzz")
    (place / "t").write_bytes(content * repeat)
    sizes = "--embedding 2 --hidden 3 --window 4 --batch 2 --steps 2 --threads 1"
    status = main(["train", str(place / "t"), "--run", str(place / "run"), *sizes.split(), "--symbols", symbols])
    out, err = capsys.readouterr()
    if status == 0:
        assert err == "" and main(["sample", str(place / "run"), "--length", "5"]) == 0
        capsys.readouterr()
    else:
        assert status == 2 and out == "" and err.count("\n") == 1 and not (place / "run").exists()
