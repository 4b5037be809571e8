"""The script that measures on a GPU: what goes wrong in one place is told, and the rest goes on."""

import pytest
import torch
from benchmarks import gpu, gpu_parts
from benchmarks.gpu_parts import Report


def test_what_fails_is_a_red_row_and_the_rest_goes_on(capsys):
    report = Report()
    with report.told("lstm", "3,2,17"):
        raise RuntimeError("no room\nmore")
    report.check("twice", True)
    report.check("in a graph", False, "tensor 2")
    assert report.red == 2
    assert capsys.readouterr().out.splitlines() == [
        "| lstm | 3,2,17 | FAILED: RuntimeError: no room |", "| twice | yes |  |", "| in a graph | NO | tensor 2 |",
    ]  # fmt: skip


def test_sections_go_on_behind_one_that_ends_badly_and_are_written_as_they_come(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_INTERPRET", "0")  # put back afterwards: --rehearse sets it
    out, seen = tmp_path / "results.md", []

    class Process:
        def __init__(self, command, **how):
            name = command[3].removeprefix("--here=")
            seen.append((name, out.read_text()))
            self.stdout, self.status = iter([f"| {name} |\n"]), -11 if name == "map" else 0

        def wait(self, timeout=None):
            return self.status

    monkeypatch.setattr(gpu.subprocess, "Popen", Process)
    assert gpu.main(["--rehearse", "--only", "map", "--only", "cells", "--out", str(out)]) == 1
    assert [name for name, _ in seen] == ["map", "cells"] and "| map |" in seen[1][1]
    text = out.read_text()
    assert "Section map: ended with status -11" in text and "| cells |" in text and "Red: map;" in text


def test_without_a_gpu_it_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "--rehearse tries this script" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu.main(["--minutes", "0"])
    assert "more than 0; came 0" in capsys.readouterr().err


def test_the_settings_of_products_are_put_back():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (matmul.allow_tf32, cudnn.allow_tf32)
    for tf32 in (True, False):
        with gpu_parts.rounded(tf32):
            assert matmul.allow_tf32 == cudnn.allow_tf32 == tf32
        assert (matmul.allow_tf32, cudnn.allow_tf32) == before
