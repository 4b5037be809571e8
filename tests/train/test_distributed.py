"""Two processes that train together: the losses of one, exact resuming, other numbers of processes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.processes import Stop, configs, crash, curve, together, weights

from throughtime.errors import CheckpointError
from throughtime.train import resume, train
from throughtime.train.checkpoint import read_resume, step_name

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")

FAST = ["text", "sequence"]
SLOW = ["forecast", "characters", "notes", "reber", "copy"]


@pytest.mark.parametrize("kinds", [FAST, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["fast", "slow"])
def test_two_processes_give_the_numbers_of_one_and_resume_exactly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kinds: list[str]
) -> None:
    jobs: list[Any] = []
    for name, config in configs(tmp_path).items():
        if name in kinds:
            dropped = replace(config, dropout=0.3, layers=2)
            with pytest.raises(Stop):
                train(config, tmp_path / f"{name}-up", on_step=crash)
            jobs += [
                ("train", f"{name}-two", config),
                ("crash", f"{name}-down", config),
                ("resume", f"{name}-up", None),
                ("train", f"{name}-whole", dropped),
                ("crash", f"{name}-parts", dropped),
                ("resume", f"{name}-parts", None),
            ]
    first, second = together(tmp_path, jobs)
    for name in kinds:
        config = configs(tmp_path)[name]
        train(config, tmp_path / f"{name}-one")
        # Sums in another order: float32 rounding, which 24 steps of Adam make larger.
        one = pytest.approx(curve(tmp_path / f"{name}-one"), rel=2e-3, abs=2e-4)
        assert curve(tmp_path / f"{name}-two") == one
        assert curve(tmp_path / f"{name}-two")[:3] == pytest.approx(curve(tmp_path / f"{name}-one")[:3], rel=1e-5)
        caplog.clear()
        assert len(resume(tmp_path / f"{name}-down").history) == 24
        assert [r.getMessage() for r in caplog.records if r.name == "throughtime.train"] == [
            "this run was saved by 2 processes and goes on in 1: its sequences are shared out anew, losses stay the "
            "same within rounding, and dropout draws other numbers"
        ]
        assert curve(tmp_path / f"{name}-down") == one and curve(tmp_path / f"{name}-up") == one
        whole, parts = tmp_path / f"{name}-whole", tmp_path / f"{name}-parts"
        assert curve(whole) == curve(parts)
        assert all(torch.equal(v, weights(parts)[k]) for k, v in weights(whole).items())
        assert not list(parts.rglob(".tmp-*"))
        saved = read_resume(whole / "checkpoints" / step_name(24), replace(config, dropout=0.3, layers=2).digest())
        assert len(saved["others"]) == 1 and not torch.equal(saved["rng"], saved["others"][0]["rng"])
    crashed = [name for how, name, _ in jobs if how == "crash"]
    assert [name for name, *_ in first] == [name for name, *_ in second] == crashed
    assert all(kind == "Stop" for _, kind, _ in first)
    assert all(told[1:] == ["ProcessError", "Stop: "] for told in second)


@pytest.mark.parametrize("others", [5, ["x"], [{}], [{"rng": torch.zeros(3), "cuda_rng": None}]])
def test_what_others_left_in_a_checkpoint_is_no_danger_to_one_process(tmp_path: Path, others: Any) -> None:
    config = configs(tmp_path)["text"]
    train(replace(config, steps=8), tmp_path / "run")
    place = tmp_path / "run" / "checkpoints" / step_name(8)
    saved = read_resume(place, config.digest())
    torch.save({**saved, "others": others}, place / "resume.pt")
    meta = json.loads((place / "meta.json").read_text())
    meta["sha256"]["resume.pt"] = hashlib.sha256((place / "resume.pt").read_bytes()).hexdigest()
    (place / "meta.json").write_text(json.dumps(meta))
    if isinstance(others, list):  # another process' part, which this one does not need
        assert len(resume(tmp_path / "run", steps=9).history) == 9
    else:
        with pytest.raises(CheckpointError, match=r"does not fit the run: resume.pt: TypeError"):
            resume(tmp_path / "run", steps=9)
