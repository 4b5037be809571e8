"""The guard inside a run: what it leaves out, where it goes back to, and that a kill loses or doubles none of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.runs import KINDS, Stop, assert_same_run, crash_at, described, numbers, signal_at

from throughtime.cures import Incident
from throughtime.errors import CheckpointError, GuardStopped
from throughtime.live.follow import Run as Followed
from throughtime.train import LMConfig, TrainingStopped, TrainResult, resume, steps, train, updates
from throughtime.train.checkpoint import RESUME, read_resume, step_name, steps_in
from throughtime.train.data.batch import Batch
from throughtime.train.guarding import sentence
from throughtime.train.runlog import read_log
from throughtime.train.session import Session

Tiny = Callable[..., LMConfig]


def bad_at(monkeypatch: pytest.MonkeyPatch, positions: Sequence[int], what: str = "loss") -> None:
    """The windows at these positions of the data give a NaN, in the loss or in the gradient, whenever they are read."""
    real_gradients, real_loss, now = steps.gradients, updates.total_loss, [False]

    def gradients(session: Session, source: Any) -> updates.Update:
        now[0] = session.position in positions
        return real_gradients(session, source)

    def total_loss(schema: Any, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        loss = real_loss(schema, outputs, batch)
        if now[0] and what == "loss":
            return loss * math.nan
        if now[0] and outputs.requires_grad:
            outputs.register_hook(lambda g: g.index_fill(-1, torch.tensor([0]), math.inf))
        return loss

    monkeypatch.setattr(steps, "gradients", gradients)
    monkeypatch.setattr(updates, "total_loss", total_loss)


def too_long(tiny: Tiny, **options: Any) -> LMConfig:
    """Steps of SGD so long that the loss of a ReLU network is soon NaN, and half as long are not."""
    of: dict[str, Any] = {
        "cell": "rnn-relu", "optimiser": "sgd", "lr": 3.0, "clip_norm": 0.0, "checkpoint_every": 4, "watch_budget": 0.0,
    }  # fmt: skip
    return tiny(**{**of, **options})


def told(run: Path) -> list[dict[str, Any]]:
    lines = (run / "guard.jsonl").read_text().splitlines() if (run / "guard.jsonl").exists() else []
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("kind", KINDS)
def test_a_healthy_run_is_bit_for_bit_the_one_without_the_guard(kind: str, tmp_path: Path) -> None:
    config = described(kind, tmp_path)
    one = train(config, tmp_path / "with")
    other = train(replace(config, guard=False), tmp_path / "without")
    assert numbers(one) == numbers(other) and one.incidents == []
    assert_same_run(tmp_path / "with", tmp_path / "without")
    assert not (tmp_path / "with" / "guard.jsonl").exists()


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_bad_window_is_left_out_and_told(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    bad_at(monkeypatch, [12], what)
    run, said = tmp_path / "run", list[Incident]()
    result = train(tiny(), run, on_incident=said.append)
    assert said == result.incidents and not caplog.records
    assert [(i.iteration, i.action) for i in said] == [(13, "skip")]
    assert "at step 13" in sentence(said[0]) and sentence(said[0]).endswith("; that update is left out")
    assert "LanguageModel" in sentence(said[0]) and "\n" not in sentence(said[0])
    assert [r.step for r in read_log(run / "log.jsonl")] == list(range(1, 31))
    resumed = read_resume(run / "checkpoints" / step_name(30), tiny().digest())
    assert resumed["position"] == 31  # one window more than there were updates
    assert told(run)[0] == {"throughtime": "guard", "format": 1}
    assert [(line["iteration"], line["done"]) for line in told(run)[1:]] == [(13, "skipped the step")]
    alarms = Followed("run", run / "guard.jsonl", "guard").look(True)
    assert alarms is not None and len(alarms["alarms"]) == 1 and alarms["alarms"][0].startswith("iteration 13: ")


def test_without_anybody_to_tell_it_is_a_warning(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad_at(monkeypatch, [3])
    result = train(tiny(steps=6), tmp_path / "run")
    assert [r.getMessage() for r in caplog.records] == [sentence(i) for i in result.incidents]


def test_what_is_carried_is_put_back_or_begun_anew(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, Any] = {}
    real = steps.gradients

    def gradients(session: Session, source: Any) -> updates.Update:
        seen[session.position] = session.state
        return real(session, source)

    monkeypatch.setattr(steps, "gradients", gradients)
    bad_at(monkeypatch, [4])
    train(tiny(steps=8, valid_fraction=0.0), tmp_path / "run")
    assert all(torch.equal(a, b) for a, b in zip(seen[5], seen[4], strict=True))  # as if window 4 had not been
    assert not torch.equal(seen[6][0], seen[5][0])
    seen.clear()
    monkeypatch.undo()
    monkeypatch.setattr(steps, "gradients", gradients)
    bad_at(monkeypatch, [0])
    train(tiny(steps=3, valid_fraction=0.0), tmp_path / "again")
    assert seen[1] is None  # what came before window 0 belongs to no sequence that goes on


@pytest.mark.parametrize("kind", ["label", "notes"])
def test_sequences_of_other_lengths_go_on_behind_a_bad_batch(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad_at(monkeypatch, [0, 7])  # of notes, 0 begins sequences and the batch behind it goes on with them
    result = train(described(kind, tmp_path), tmp_path / "run")
    assert [i.action for i in result.incidents] == ["skip", "back", "skip", "skip"]  # known to be bad, the second time
    assert all(math.isfinite(r.loss) for r in result.history)


def test_too_long_steps_are_taken_back_and_made_shorter(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = train(too_long(tiny), run, on_incident=lambda i: None)
    skip, back = result.incidents[:2]
    assert skip.action == "skip" and skip.record is not None and skip.record.located
    assert back.action == "back" and back.factor == 0.5 and back.back_to is not None
    place = back.back_to - 1
    assert place % 4 == 0 and place < back.iteration - 1  # not the weights that failed
    assert sentence(back).endswith(f"; back to step {place}, from now on learning rate x 0.5")
    assert [r.step for r in read_log(run / "log.jsonl")] == [r.step for r in result.history] == list(range(1, 31))
    assert all(math.isfinite(r.loss) for r in result.history) and steps_in(run / "checkpoints")[-1] == 30
    assert [line["iteration"] for line in told(run)[1:]] == [i.iteration for i in result.incidents]
    assert read_resume(run / "checkpoints" / step_name(30), too_long(tiny).digest())["guard"]["factor"] <= 0.5


def interrupted(config: LMConfig, run: Path, how: str, at: int) -> TrainResult:
    """A run that is stopped at a step once, by a crash or by Ctrl-C, and continued."""
    stopper = crash_at(at) if how == "crash" else signal_at(at)
    with pytest.raises((Stop, TrainingStopped)):
        train(config, run, on_step=stopper, on_incident=lambda i: None)
    return resume(run, on_incident=lambda i: None)


@pytest.mark.parametrize("how", ["crash", "signal"])
def test_an_interrupted_run_with_incidents_is_the_uninterrupted_one(tiny: Tiny, tmp_path: Path, how: str) -> None:
    config = too_long(tiny, steps=24, dropout=0.1)
    whole = train(config, tmp_path / "whole", on_incident=lambda i: None)
    assert {i.action for i in whole.incidents} == {"skip", "back"}
    first = whole.incidents[0].iteration
    for at in (1, 4, first - 1, first, first + 1, first + 6):
        run = tmp_path / f"{at}"
        result = interrupted(config, run, how, at)
        assert numbers(result) == numbers(whole), at
        assert_same_run(tmp_path / "whole", run)
        assert (run / "guard.jsonl").read_bytes() == (tmp_path / "whole" / "guard.jsonl").read_bytes()


@pytest.mark.parametrize("at", [11, 13, 19])
def test_a_left_out_window_is_told_once_however_often_the_run_is_interrupted(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    bad_at(monkeypatch, [5, 12, 20])
    config = tiny(dropout=0.2)
    train(config, tmp_path / "whole", on_incident=lambda i: None)
    with pytest.raises(Stop):
        train(config, tmp_path / "run", on_step=crash_at(at), on_incident=lambda i: None)
    with pytest.raises(Stop):
        resume(tmp_path / "run", on_step=crash_at(at + 2), on_incident=lambda i: None)
    resume(tmp_path / "run", on_incident=lambda i: None)
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert (tmp_path / "run" / "guard.jsonl").read_bytes() == (tmp_path / "whole" / "guard.jsonl").read_bytes()
    resume(tmp_path / "run", checkpoint="step-000020", on_incident=lambda i: None)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_run_that_cannot_be_helped_stops_with_a_way_out(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    bad_at(monkeypatch, range(23, 99))
    with pytest.raises(GuardStopped) as caught:
        train(tiny(valid_fraction=0.0), run, on_incident=lambda i: None)
    message = str(caught.value)
    assert message.startswith("the loss is nan at step ") and "\n" not in message
    assert ", after all that the guard could do (" in message and " times gone back)" in message
    assert f"; the last good checkpoint is {run}/checkpoints/step-0000" in message
    assert f"continue from it with smaller steps: throughtime train --resume {run} --checkpoint step-" in message
    monkeypatch.undo()
    command = message.split(" --checkpoint ")[1].split()
    checkpoint, rate, clip = command[0], float(command[2]), float(command[4])
    assert rate < 0.01 / 2**5
    result = resume(run, checkpoint=checkpoint, lr=rate, clip_norm=clip)
    assert [r.step for r in result.history] == list(range(1, 31))
    end = read_resume(run / "checkpoints" / step_name(30), tiny(valid_fraction=0.0).digest())
    assert end["guard"]["factor"] == 1.0 and end["guard"]["clip"] is None  # what the user said counts


def test_weights_that_fail_from_the_start_ask_for_another_run(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad_at(monkeypatch, range(99))
    with pytest.raises(
        GuardStopped, match=r"at step 1 .*, with the weights that the run began with: start another run"
    ):
        train(tiny(), tmp_path / "run", on_incident=lambda i: None)


def test_a_validation_that_is_no_number_takes_the_run_back(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = steps.validate, [0]

    def validate(*given: Any) -> float:
        calls[0] += 1
        return math.nan if calls[0] == 2 else real(*given)

    monkeypatch.setattr(steps, "validate", validate)
    result = train(tiny(), tmp_path / "run", on_incident=lambda i: None)
    assert [sentence(i) for i in result.incidents] == [
        "the validation loss is nan at step 20; back to step 10, from now on learning rate x 0.5"
    ]
    assert [r.step for r in result.history if r.valid is not None] == [10, 20, 30] and calls[0] == 4


def test_no_checkpoint_has_an_optimiser_that_is_broken(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = steps.apply, [0]

    def apply(session: Session, *given: Any) -> None:
        real(session, *given)
        calls[0] += 1
        if calls[0] == 17:
            next(iter(session.optimiser.state.values()))["exp_avg_sq"].fill_(math.inf)

    monkeypatch.setattr(steps, "apply", apply)
    result = train(tiny(valid_fraction=0.0), tmp_path / "run", on_incident=lambda i: None)
    assert [(i.iteration, i.action, i.back_to) for i in result.incidents] == [(20, "back", 11)]
    assert "exp_avg_sq" in sentence(result.incidents[0])
    assert [r.step for r in result.history] == list(range(1, 31))


def test_a_file_of_incidents_that_is_none_is_refused(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad_at(monkeypatch, [3])
    run = tmp_path / "run"
    train(tiny(steps=10), run, on_incident=lambda i: None)
    (run / "guard.jsonl").write_text("what is this\n")
    with pytest.raises(CheckpointError, match=r"guard\.jsonl is no file of incidents that can be gone on with; move"):
        resume(run, steps=12)
    (run / "guard.jsonl").unlink()
    assert len(resume(run, steps=12).history) == 12


def test_a_checkpoint_whose_guard_is_none_is_refused_and_one_without_is_taken(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr("throughtime.train.guarding.RunGuard.state_dict", lambda self: {"rule": 3})
        train(tiny(steps=10), run)
    with pytest.raises(CheckpointError, match=rf"does not fit the run: {RESUME}: the guard"):
        resume(run, steps=12)
    assert resume(run, steps=12, guard=False).history[-1].step == 12
    assert resume(run, steps=14, guard=True).history[-1].step == 14
