"""The callbacks against the real Trainer of Hugging Face: a healthy run unchanged, NaN survived, clips adapt."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import nn

import throughtime as tt
from tests.ecosystem.snippets import under
from throughtime import cures
from throughtime.errors import ConfigError, GuardStopped, NonFiniteError

transformers = pytest.importorskip("transformers", reason="transformers is an optional extra")
pytest.importorskip("accelerate", reason="the Trainer needs accelerate")

T, B, N = 7, 4, 12  # steps, sequences a batch, batches


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 1)

    def forward(self, x, labels=None):
        out = self.head(self.lstm(x)[0][:, -1])
        return {"loss": nn.functional.mse_loss(out, labels), "logits": out}


def samples(bad=None, factor=None):
    torch.manual_seed(3)
    x, y = torch.randn(N * B, T, 3), torch.randn(N * B, 1)
    if bad is not None:
        x[bad * B + 2, 4, 1] = float("nan")
    if factor is not None:
        y[factor * B : (factor + 1) * B] *= 1e4
    return [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]


def trained(tmp_path, callbacks, data=None, model=None, resume=None, **options):
    torch.manual_seed(1)
    model = model or Model()
    args = transformers.TrainingArguments(
        **{
            "output_dir": str(tmp_path), "per_device_train_batch_size": B, "num_train_epochs": 1, "use_cpu": True,
            "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1,
            "learning_rate": 0.01, "dataloader_pin_memory": False, "train_sampling_strategy": "sequential", **options,
        }
    )  # fmt: skip
    trainer = transformers.Trainer(model, args, train_dataset=data or samples(), callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return [p.detach().clone() for p in model.parameters()], trainer


def same(a, b):
    return all(torch.equal(v, w) for v, w in zip(a, b, strict=True))


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 3}], ids=str)
def test_a_healthy_training_keeps_every_bit(tmp_path, options):
    watch, guard = tt.transformers.Watch(budget=float("inf")), tt.transformers.Guard(every=2)
    plain, _ = trained(tmp_path, [], **options)
    with_both, trainer = trained(tmp_path, [watch, guard], **options)
    assert same(plain, with_both) and not guard.incidents
    assert guard.guard.cost.steps == N // options.get("gradient_accumulation_steps", 1)
    assert len(watch.history) == N and watch.history[-1].recurrences[0].name == "lstm"
    assert "gradient horizon" in str(watch) and watch.diagnosis().findings is not None
    assert any("gradient_horizon/lstm/layer_0" in found for found in trainer.state.log_history)


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}], ids=str)
def test_a_planted_nan_is_located_and_survived(tmp_path, options):
    guard = tt.transformers.Guard()
    weights, trainer = trained(tmp_path, [guard], samples(bad=6), **options)
    assert all(bool(w.isfinite().all()) for w in weights)
    assert trainer.state.global_step == N // options.get("gradient_accumulation_steps", 1)
    (incident,) = guard.incidents
    assert incident.action == "skip" and incident.record.cause == "bad input"
    assert incident.record.t == 4 and incident.record.sample == 2


def test_an_explosion_is_skipped(tmp_path):
    guard = tt.transformers.Guard()
    trained(tmp_path, [guard], samples(factor=11), max_grad_norm=0)
    assert [i.action for i in guard.incidents] == ["skip"] and "the loss is" in guard.incidents[0].fault


def test_the_guard_at_its_end_ends_the_training_and_leaves_nothing_behind(tmp_path):
    guard, data = tt.transformers.Guard(tries=1), samples()
    for found in data[B * 2 :]:
        found["x"][:] = float("nan")
    with pytest.raises(GuardStopped, match="stopped at iteration"):
        trained(tmp_path, [guard], data)
    assert not guard.guard.optimizers[0]._optimizer_step_pre_hooks
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in guard.guard.model.modules())


def test_after_an_error_close_takes_everything_off(tmp_path):
    class Failing(Model):
        def forward(self, x, labels=None):
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls == 4:
                raise ValueError("mine")
            return super().forward(x, labels)

    backward, model = torch.autograd.backward, Failing()
    watch, guard = tt.transformers.Watch(budget=float("inf")), tt.transformers.Guard()
    with pytest.raises(ValueError, match="mine"):
        trained(tmp_path, [watch, guard], model=model)
    watch.close()
    guard.close()
    assert torch.autograd.backward is backward and len(watch.history) == 3
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_clips_adapt_and_leave_nan_to_the_guard(tmp_path):
    clip, guard = tt.transformers.Clip(cures.AutoClip(50)), tt.transformers.Guard()
    clipped, trainer = trained(tmp_path, [clip, guard], samples(bad=6), max_grad_norm=0)
    assert not same(clipped, trained(tmp_path, [], max_grad_norm=0)[0]) and len(guard.incidents) == 1
    actions = [s.action for s in clip.record.steps]
    assert actions.count("left") == 1 and 2 <= actions.count("clipped") <= 9
    assert sum("clip_threshold" in found for found in trainer.state.log_history) == N
    with pytest.raises(NonFiniteError, match="is not finite"):
        trained(tmp_path, [tt.transformers.Clip(cures.AutoClip(50))], samples(bad=6), max_grad_norm=0)


def test_resuming_from_the_trainers_checkpoints(tmp_path):
    def callbacks():
        return [
            tt.transformers.Watch(budget=float("inf"), path=tmp_path / "watch.jsonl"),
            tt.transformers.Guard(every=3),
            tt.transformers.Clip(cures.AutoClip(50)),
        ]

    options = {"max_grad_norm": 0, "save_strategy": "epoch", "num_train_epochs": 2}
    whole = callbacks()
    uninterrupted, _ = trained(tmp_path / "run", whole, samples(bad=6), **options)
    saved = json.loads((tmp_path / f"run/checkpoint-{N}/trainer_state.json").read_text())
    assert {"throughtime.Watch", "throughtime.Guard", "throughtime.Clip"} <= set(saved["stateful_callbacks"])
    again = callbacks()
    resumed, _ = trained(
        tmp_path / "run", again, samples(bad=6), resume=str(tmp_path / f"run/checkpoint-{N}"), **options
    )
    assert same(resumed, uninterrupted)
    assert [i.fault for i in again[1].incidents] == [i.fault for i in whole[1].incidents] and len(
        again[1].incidents
    ) == 2
    assert again[1].guard.state_dict()["limits"] == whole[1].guard.state_dict()["limits"]
    assert again[2].clipping.state_dict() == whole[2].clipping.state_dict()
    # The record of the last step before the checkpoint still waited there for the size of its own update.
    assert [r.step for r in again[0].history] == [r.step for r in whole[0].history if r.step != N]
    assert (tmp_path / "watch-2.jsonl").exists()


def test_what_makes_no_sense_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"TrainingArguments\(max_grad_norm=0\)"):
        trained(tmp_path, [tt.transformers.Clip(cures.ZClip())])
    with pytest.raises(ConfigError, match=r"those of throughtime\.Guard"):
        tt.transformers.Guard(evry=3)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"not installed: pip install throughtime\[transformers\]"):
        _ = tt.transformers.Watch


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator")
def test_the_page_is_true(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(under("Hugging Face Trainer"), {"model": Model(), "data": samples()})
    assert "Watch of Model: 6 training steps" in capsys.readouterr().out and (tmp_path / "watch.jsonl").exists()
