"""Tests of throughtime.train.loop: what a run computes, and that a continued run computes the same."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from throughtime.errors import ConfigError, DataError, NonFiniteError
from throughtime.train import LMConfig, StepRecord, TrainResult, generate, load, read_text, resume, train, updates
from throughtime.train.checkpoint import steps_in
from throughtime.train.data.schema import TextSchema
from throughtime.train.runlog import read_log
from throughtime.train.session import Session, private_torch

Tiny = Callable[..., LMConfig]


class Stop(Exception):
    """Ends a run from its `on_step`, as a crash would: nothing is saved."""


def crash_at(step: int) -> Callable[[StepRecord], None]:
    def on_step(record: StepRecord) -> None:
        if record.step == step:
            raise Stop

    return on_step


def numbers(result: TrainResult) -> list[StepRecord]:
    return [replace(record, seconds=0.0) for record in result.history]


def weights(run: Path) -> dict[str, torch.Tensor]:
    last = steps_in(run / "checkpoints")[-1]
    return safetensors.torch.load_file(run / "checkpoints" / f"step-{last:06d}" / "model.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    assert [replace(r, seconds=0.0) for r in read_log(one / "log.jsonl")] == [
        replace(r, seconds=0.0) for r in read_log(other / "log.jsonl")
    ]
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_a_run_learns_and_leaves_its_files(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    seen: list[StepRecord] = []
    started: list[tuple[Path, int]] = []
    result = train(tiny(steps=60), run, on_start=lambda *a: started.append(a), on_step=seen.append)
    assert started == [(run, 0)] and seen == result.history == read_log(run / "log.jsonl")
    assert [r.step for r in seen] == list(range(1, 61))
    assert [r.step for r in seen if r.valid is not None] == [10, 20, 30, 40, 50, 60]
    assert seen[-1].loss < 0.7 * seen[0].loss
    assert result.best_valid == min(r.valid for r in seen if r.valid is not None)
    assert seen[result.best_step - 1].valid == result.best_valid
    assert sorted(p.name for p in run.iterdir()) == [
        "checkpoints",
        "config.json",
        "log.jsonl",
        "schema.json",
        "watch.jsonl",
    ]
    assert len(generate(load(run), "the c", 20)) == 20


def test_the_first_loss_and_norm_are_those_of_the_initial_weights(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(steps=1)
    record = train(config, tmp_path / "run").history[0]
    text = read_text(config)
    with private_torch(config):
        model = Session(config, TextSchema(text.vocabulary)).model.double()
    x, y = text.train.window(0)
    p = torch.softmax(model(x)[0], -1).gather(-1, y[..., None])
    loss = -p.log2().mean()
    (loss * math.log(2)).backward()
    norm = math.sqrt(sum(float(q.grad.square().sum()) for q in model.parameters() if q.grad is not None))
    assert record.loss == pytest.approx(loss.item(), rel=1e-5)  # float32 against float64
    assert record.grad_norm == pytest.approx(norm, rel=1e-4)


def test_clipping_bounds_the_step_and_keeps_its_direction(tiny: Tiny, tmp_path: Path) -> None:
    def update(clip: float) -> tuple[dict[str, torch.Tensor], float]:
        run = tmp_path / str(clip)
        result = train(tiny(steps=1, optimiser="sgd", lr=1.0, clip_norm=clip), run)
        before = safetensors.torch.load_file(run / "checkpoints" / "step-000000" / "model.safetensors")
        return {k: v - before[k] for k, v in weights(run).items()}, result.history[0].grad_norm

    (free, norm), (short, same) = update(0.0), update(0.01)
    assert norm == same > 0.01
    assert math.sqrt(sum(float(v.square().sum()) for v in short.values())) == pytest.approx(0.01, rel=1e-3)
    for name in free:  # differences of float32 weights near 0.3 are exact to about 3e-8
        torch.testing.assert_close(short[name], free[name] * (0.01 / norm), rtol=1e-3, atol=6e-8)


def test_the_state_is_carried_inside_an_epoch_and_dropped_at_its_end(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(lr=1e-30, steps=40, dropout=0.0)  # the weights stay: equal windows and states give equal losses
    windows = len(read_text(config).train)
    assert 40 > windows > 2
    bits = [r.loss for r in train(config, tmp_path / "run").history]
    assert bits[windows:] == bits[: 40 - windows]
    text = read_text(config)
    model = load(tmp_path / "run")
    x, y = text.train.window(1)
    fresh = torch.nn.functional.cross_entropy(model(x)[0].flatten(0, 1), y.flatten()).item() / math.log(2)
    assert abs(bits[1] - fresh) > 1e-4


@pytest.mark.parametrize(
    "options", [{}, {"cell": "gru", "layers": 2, "dropout": 0.3}, {"optimiser": "sgd", "dropout": 0.2}]
)
@pytest.mark.parametrize("crash", [13, 20, 29])
def test_a_continued_run_is_the_uninterrupted_one_bit_for_bit(
    tiny: Tiny, tmp_path: Path, options: dict[str, object], crash: int
) -> None:
    config = tiny(**options)
    whole = train(config, tmp_path / "whole")
    with pytest.raises(Stop):
        train(config, tmp_path / "parts", on_step=crash_at(crash))
    torch.manual_seed(99)  # the caller's random numbers must not matter
    parts = resume(tmp_path / "parts")
    assert numbers(parts) == numbers(whole)
    assert (parts.best_valid, parts.best_step) == (whole.best_valid, whole.best_step)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_going_back_to_an_earlier_checkpoint_drops_what_came_after(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny(dropout=0.2), tmp_path / "whole")
    train(tiny(dropout=0.2), tmp_path / "again")
    assert 20 in steps_in(tmp_path / "again" / "checkpoints")
    with pytest.raises(Stop):
        resume(tmp_path / "again", checkpoint="step-000020", on_step=crash_at(21))
    assert steps_in(tmp_path / "again" / "checkpoints")[-1] == 20
    assert read_log(tmp_path / "again" / "log.jsonl")[-1].step == 21
    resume(tmp_path / "again")
    assert_same_run(tmp_path / "whole", tmp_path / "again")


def test_a_run_can_be_made_longer(tiny: Tiny, tmp_path: Path) -> None:
    whole = train(tiny(steps=40, dropout=0.2), tmp_path / "whole")
    train(tiny(steps=30, dropout=0.2), tmp_path / "longer")
    with pytest.raises(ConfigError, match="at step 30, and --steps is 30: there is nothing left to do"):
        resume(tmp_path / "longer")
    longer = resume(tmp_path / "longer", steps=40)
    assert numbers(longer) == numbers(whole)
    assert_same_run(tmp_path / "whole", tmp_path / "longer")
    saved = json.loads((tmp_path / "longer" / "config.json").read_text())
    assert saved["config"]["steps"] == 40 and saved["changes"] == [{"step": 30, "steps": [30, 40]}]


def test_a_smaller_rate_takes_hold_and_is_on_record(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny(steps=20), run)
    with pytest.raises(Stop):
        resume(run, steps=30, lr=1e-30, on_step=crash_at(25))
    before = weights(run)
    resume(run)
    assert all(torch.equal(v, before[k]) for k, v in weights(run).items())
    assert json.loads((run / "config.json").read_text())["changes"] == [
        {"step": 20, "steps": [20, 30], "lr": [0.01, 1e-30]}
    ]
    resume(run, checkpoint="step-000020", lr=0.01)  # the way of the smaller rate is left, and with it its record
    assert json.loads((run / "config.json").read_text())["changes"] == [{"step": 20, "steps": [20, 30]}]


def test_what_would_be_another_model_cannot_be_resumed(tiny: Tiny, tmp_path: Path, text_file: Path) -> None:
    train(tiny(steps=5), tmp_path / "run")
    with pytest.raises(ConfigError, match="hidden cannot change"):
        resume(tmp_path / "run", steps=9, hidden=4)
    text_file.write_text(text_file.read_text().replace("sat", "ate"))
    with pytest.raises(DataError, match="has changed since the run"):
        resume(tmp_path / "run", steps=9)


def test_a_text_that_moved_can_be_named(tiny: Tiny, tmp_path: Path, text_file: Path) -> None:
    train(tiny(steps=5), tmp_path / "run")
    moved = text_file.rename(tmp_path / "moved.txt")
    with pytest.raises(DataError, match="there is no file"):
        resume(tmp_path / "run", steps=9)
    assert len(resume(tmp_path / "run", steps=9, text=str(moved)).history) == 9


def test_training_leaves_the_callers_random_numbers_alone(tiny: Tiny, tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train(tiny(steps=3, dropout=0.5), tmp_path / "run")
    load(tmp_path / "run")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("text", "symbols"), [("a" * 200, "characters"), ("a" * 200, "bytes"), ("ab\n" * 70, "bytes")])
def test_texts_with_little_in_them_train(tmp_path: Path, tiny: Tiny, text: str, symbols: str) -> None:
    path = tmp_path / "t.txt"
    path.write_text(text)
    result = train(tiny(text=str(path), symbols=symbols, steps=20, window=4, lr=0.05), tmp_path / "run")
    assert result.history[-1].loss <= result.history[0].loss
    assert len(generate(load(tmp_path / "run"), "a", 5).encode("utf-8", "replace")) >= 5


def test_no_validation_keeps_the_last(tiny: Tiny, tmp_path: Path) -> None:
    result = train(tiny(steps=25, valid_fraction=0.0), tmp_path / "run")
    assert result.best_valid is None and all(r.valid is None for r in result.history)
    assert steps_in(tmp_path / "run" / "checkpoints") == [20, 25]
    best, last = load(tmp_path / "run"), load(tmp_path / "run", "last")
    assert all(torch.equal(a, b) for a, b in zip(best.parameters(), last.parameters(), strict=True))


def break_at(monkeypatch: pytest.MonkeyPatch, step: int, what: str) -> None:
    """Put a NaN into the loss, or one into a gradient, of that step (1 is the first)."""
    calls = [0]
    real = updates.total_loss

    def total_loss(schema: Any, outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        calls[0] += 1
        loss = real(schema, outputs, batch)
        if calls[0] == step:
            if what == "loss":
                return loss * math.nan
            outputs.register_hook(lambda g: g.index_fill(-1, torch.tensor([0]), math.inf))
        return loss

    monkeypatch.setattr(updates, "total_loss", total_loss)


@pytest.mark.parametrize(("what", "says"), [("loss", "the loss is nan"), ("gradient", "the gradient of ")])
def test_without_the_guard_a_nan_stops_the_run_before_it_reaches_the_weights(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, says: str
) -> None:
    run = tmp_path / "run"
    break_at(monkeypatch, 23, what)
    with pytest.raises(NonFiniteError) as caught:
        train(tiny(valid_fraction=0.0, guard=False), run)
    message = str(caught.value)
    assert message.startswith(says) and "at step 23;" in message and "\n" not in message
    assert f"the last good checkpoint is {run}/checkpoints/step-000020" in message
    assert f"throughtime train --resume {run} --checkpoint step-000020 --lr 0.005 --clip-norm 0.5" in message
    monkeypatch.undo()
    assert all(bool(p.isfinite().all()) for p in load(run).parameters())
    assert read_log(run / "log.jsonl")[-1].step == 22
    result = resume(run, checkpoint="step-000020", lr=0.005, clip_norm=0.5)
    assert [r.step for r in result.history] == list(range(1, 31))


def test_the_parameters_with_a_broken_gradient_are_named(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_at(monkeypatch, 2, "gradient")
    with pytest.raises(NonFiniteError, match=r"the gradient of embedding.weight \(and of \d more\) is not finite"):
        train(tiny(guard=False), tmp_path / "run")


def test_a_checkpoint_of_the_failing_weights_is_not_called_good(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_at(monkeypatch, 21, "loss")
    with pytest.raises(NonFiniteError, match=r"step 21; the last good checkpoint is \S+step-000010;"):
        train(tiny(valid_fraction=0.0, guard=False), tmp_path / "run")


def test_weights_that_fail_from_the_start_ask_for_another_run(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_at(monkeypatch, 1, "loss")
    with pytest.raises(NonFiniteError, match="with the weights that the run began with: start another run"):
        train(tiny(guard=False), tmp_path / "run")


def test_steps_that_are_far_too_long_end_in_this_error(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(cell="rnn-relu", optimiser="sgd", lr=1e30, clip_norm=0.0)
    with pytest.raises(NonFiniteError, match=r"not finite|is nan|is inf"):
        train(config, tmp_path / "run")


def test_a_model_that_does_not_fit_and_a_device_that_is_not_there(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="do not fit into memory; lower --hidden"):
        train(tiny(hidden=2**31 - 1), tmp_path / "run")
    with pytest.raises(ConfigError, match="device 'abacus' cannot be used here"):
        train(tiny(device="abacus"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_default_directories_are_numbered(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [train(tiny(steps=1)).path for _ in range(3)]
    assert paths == [Path("runs/cats-lstm"), Path("runs/cats-lstm-2"), Path("runs/cats-lstm-3")]
