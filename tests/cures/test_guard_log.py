"""The guard's incidents in a file: each once, whole, at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import throughtime as tt
from throughtime.cures import Incident, IncidentLog
from throughtime.errors import CheckpointError


def test_each_incident_is_a_line_at_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.LSTM(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    log = IncidentLog(tmp_path / "guard.jsonl")
    guard = tt.Guard(model, optimizer, on_incident=log)
    counts = []
    for i in range(6):
        x = torch.randn(5, 2, 3)
        if i in (2, 4):
            x[3, 1, 0] = float("nan")
        with guard.step() as step:
            optimizer.zero_grad()
            step.backward(model(x)[0].square().mean())
            optimizer.step()
        counts.append(len((tmp_path / "guard.jsonl").read_text().splitlines()))
    assert counts == [1, 1, 2, 2, 3, 3]
    head, *lines = map(json.loads, (tmp_path / "guard.jsonl").read_text().splitlines())
    assert head == {"throughtime": "guard", "format": 1}
    assert [line["iteration"] for line in lines] == [i.iteration for i in guard.incidents]
    assert [line["text"] for line in lines] == [str(i) for i in guard.incidents]
    assert all(line["done"] == "skipped the step" for line in lines)
    log.close()
    with pytest.raises(CheckpointError, match="already there"):
        IncidentLog(tmp_path / "guard.jsonl")


def incident(iteration: int) -> Incident:
    return Incident(iteration, "the loss is nan", "skip")


def test_a_resumed_training_goes_on_with_the_file_and_doubles_no_line(tmp_path: Path) -> None:
    path = tmp_path / "guard.jsonl"
    log = IncidentLog(path, keep=0)  # new where there is none
    for i in (3, 5, 8):
        log(incident(i))
    log.sync()
    log.close()
    path.write_text(path.read_text()[:-9])  # a kill in the middle of the last line
    log = IncidentLog(path, keep=5)
    log.close()
    assert [json.loads(line)["iteration"] for line in path.read_text().splitlines()[1:]] == [3, 5]
    log = IncidentLog(path, keep=1)
    log(incident(6))
    log.close()
    head, *lines = map(json.loads, path.read_text().splitlines())
    assert head["throughtime"] == "guard" and [line["iteration"] for line in lines] == [3, 6]


@pytest.mark.parametrize("content", [b"", b"x\n", b'{"throughtime": "watch", "format": 1}\n', b"\xff\n"])
def test_a_foreign_file_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "guard.jsonl"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="no file of incidents that can be gone on with"):
        IncidentLog(path, keep=0)
    assert path.read_bytes() == content
