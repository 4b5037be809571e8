"""The guard's incidents in a file: each once, whole, at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import throughtime as tt
from throughtime.cures import IncidentLog
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
