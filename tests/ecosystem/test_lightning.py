"""The callbacks against the real Lightning: nothing changed in a healthy run, NaN survived and located, clips adapt."""

from __future__ import annotations

import sys
import types
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import throughtime as tt
from tests.ecosystem.snippets import under
from throughtime import cures
from throughtime.errors import ConfigError, GuardStopped

with warnings.catch_warnings():  # what it and its parts deprecate of one another is not ours
    warnings.simplefilter("ignore", DeprecationWarning)
    lightning = pytest.importorskip("lightning.pytorch", reason="Lightning is an optional extra")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*_trace_pytree:FutureWarning"),
]

T, B, N = 7, 4, 12  # steps, sequences a batch, batches


class Module(lightning.LightningModule):
    def __init__(self, optimizer=torch.optim.Adam):
        super().__init__()
        self.lstm, self.head, self.optimizer = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 1), optimizer

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer = self.optimizer(self.parameters(), lr=0.01)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 5), "interval": "step"}]


class Manual(Module):
    """Two optimisers, stepped by hand."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.lstm, self.head)]


def batches(bad=None, factor=None):
    torch.manual_seed(3)
    x, y = torch.randn(N * B, T, 3), torch.randn(N * B, 1)
    if bad is not None:
        x[bad * B + 2, 4, 1] = float("nan")
    if factor is not None:
        y[factor * B : (factor + 1) * B] *= 1e4
    return DataLoader(TensorDataset(x, y), batch_size=B)


def trained(callbacks, data=None, module=Module, ckpt_path=None, **options):
    torch.manual_seed(1)
    model = module()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        accelerator="cpu", enable_progress_bar=False, callbacks=callbacks, **{"max_epochs": 1, **quiet, **options}
    )
    trainer.fit(model, batches() if data is None else data, ckpt_path=ckpt_path)
    return [p.detach().clone() for p in model.parameters()], trainer


def same(a, b):
    return all(torch.equal(v, w) for v, w in zip(a, b, strict=True))


@pytest.mark.parametrize("options", [{}, {"module": Manual}, {"accumulate_grad_batches": 3}], ids=str)
def test_a_healthy_training_keeps_every_bit(options):
    watch, guard = tt.lightning.Watch(budget=float("inf")), tt.lightning.Guard(every=2)
    plain, _ = trained([], **options)
    with_both, _ = trained([watch, guard], **options)
    assert same(plain, with_both) and not guard.incidents
    assert len(watch.history) == N
    seen = watch.history[-1].recurrences[0]
    assert seen.name == "lstm" and seen.steps == T and seen.horizon is not None
    assert "gradient horizon" in str(watch) and watch.diagnosis().findings is not None
    assert guard.guard.cost.steps == N


@pytest.mark.parametrize("options", [{}, {"module": Manual}, {"accumulate_grad_batches": 2}], ids=str)
def test_a_planted_nan_is_located_and_survived(options):
    guard = tt.lightning.Guard()
    weights, trainer = trained([guard], batches(bad=6), **options)
    assert all(bool(w.isfinite().all()) for w in weights) and trainer.state.finished
    (incident,) = guard.incidents
    assert incident.action == "skip" and incident.record.cause == "bad input"
    assert incident.record.t == 4 and incident.record.sample == 2


def test_a_skipped_batch_leaves_no_trace():
    loader = batches(bad=6)
    x, y = loader.dataset.tensors
    kept = torch.arange(N * B) // B != 6
    without = DataLoader(TensorDataset(x[kept], y[kept]), batch_size=B)
    sgd = lambda: NoPlan(torch.optim.SGD)  # noqa: E731
    assert same(trained([tt.lightning.Guard()], loader, sgd)[0], trained([], without, sgd)[0])


class NoPlan(Module):
    def configure_optimizers(self):
        return self.optimizer(self.parameters(), lr=0.01)


def test_an_explosion_goes_through_the_schedule_and_is_skipped():
    guard = tt.lightning.Guard(every=1)
    _, trainer = trained([guard], batches(factor=11))
    assert [i.action for i in guard.incidents] == ["skip"] and "the largest before it" in guard.incidents[0].fault
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01 * 0.1**2)


def test_the_guard_at_its_end_ends_the_fit_and_leaves_nothing_behind():
    guard = tt.lightning.Guard(tries=1)
    loader = batches()
    loader.dataset.tensors[0][B * 2 :] = float("nan")
    with pytest.raises(GuardStopped, match="stopped at iteration"):
        trained([guard], loader)
    assert not guard.guard.optimizers[0]._optimizer_step_pre_hooks
    assert not any(m._forward_pre_hooks for m in guard.guard.model.modules())


def test_an_error_of_the_users_own_passes_and_nothing_stays_on_the_model():
    class Failing(Module):
        def training_step(self, batch, batch_idx):
            if batch_idx == 3:
                raise ValueError("mine")
            return super().training_step(batch, batch_idx)

    backward = torch.autograd.backward
    watch, guard = tt.lightning.Watch(budget=float("inf")), tt.lightning.Guard()
    with pytest.raises(ValueError, match="mine"):
        trained([watch, guard], module=Failing)
    assert torch.autograd.backward is backward and len(watch.history) == 3
    assert not any(m._forward_pre_hooks for m in guard.guard.model.modules())


def test_clips_adapt_and_leave_nan_to_the_guard():
    clip, guard = tt.lightning.Clip(cures.AutoClip(50)), tt.lightning.Guard()
    clipped, _ = trained([clip, guard], batches(bad=6))
    plain, _ = trained([], max_epochs=1)
    assert not same(clipped, plain) and len(guard.incidents) == 1
    actions = [s.action for s in clip.record.steps]
    assert actions.count("left") == 1 and 2 <= actions.count("clipped") <= 9
    assert len({s.threshold for s in clip.record.steps if s.action != "left"}) > 5
    alone = tt.lightning.Clip(cures.AutoClip(50))
    with pytest.raises(cures.clip.NonFiniteError, match="is not finite"):
        trained([alone], batches(bad=6))


def test_each_optimiser_has_a_clip_of_its_own():
    clip = tt.lightning.Clip(cures.AutoClip(50))
    trained([clip], module=Manual)
    one, other = clip.clipping.clippers
    assert len(one.record.steps) == len(other.record.steps) == N and one.threshold != other.threshold


def test_resuming_from_lightnings_checkpoints(tmp_path):
    def callbacks():
        return [
            tt.lightning.Watch(budget=float("inf"), path=tmp_path / "watch.jsonl"),
            tt.lightning.Guard(every=3),
            tt.lightning.Clip(cures.AutoClip(50)),
        ]

    first = callbacks()
    _, trainer = trained(first, batches(bad=6))
    path = tmp_path / "at-1.ckpt"
    trainer.save_checkpoint(path)
    second = callbacks()
    resumed, _ = trained(second, batches(bad=6), ckpt_path=path, max_epochs=2)
    (tmp_path / "watch.jsonl").unlink()
    whole = callbacks()
    uninterrupted, _ = trained(whole, batches(bad=6), max_epochs=2)
    assert same(resumed, uninterrupted)
    assert [i.fault for i in second[1].incidents] == [i.fault for i in whole[1].incidents] and len(
        whole[1].incidents
    ) == 2
    assert second[1].guard.state_dict()["limits"] == whole[1].guard.state_dict()["limits"]
    assert second[2].clipping.state_dict() == whole[2].clipping.state_dict()
    assert [r.step for r in second[0].history] == [r.step for r in whole[0].history]
    assert (tmp_path / "watch-2.jsonl").exists()


def test_what_is_measured_goes_to_the_loggers(tmp_path):
    logger = lightning.loggers.CSVLogger(tmp_path)
    callbacks = [tt.lightning.Watch(budget=float("inf")), tt.lightning.Clip(cures.ZClip())]
    trained(callbacks, logger=logger, log_every_n_steps=1)
    header = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()[0].split(",")
    assert {"gradient_horizon/lstm/layer_0", "gradient_norm", "clip_threshold", "step"} <= set(header)


def test_what_makes_no_sense_is_refused_at_once():
    before = torch.get_rng_state()
    with pytest.raises(ConfigError, match="explode must be a number above 1"):
        tt.lightning.Guard(explode=0.5)
    with pytest.raises(ConfigError, match=r"'evry'.*those of throughtime.Guard"):
        tt.lightning.Guard(evry=3)
    with pytest.raises(ConfigError, match="optimizer is known from the trainer"):
        tt.lightning.Guard(optimizer=None)
    with pytest.raises(ConfigError, match="expected a clipper"):
        tt.lightning.Clip(1.0)
    with pytest.raises(ConfigError, match="budget"):
        tt.lightning.Watch(budget=-1)
    with pytest.raises(ConfigError, match="not the state of a"):
        tt.lightning.Clip(cures.ZClip()).load_state_dict(tt.lightning.Clip(cures.AutoClip()).state_dict())
    assert torch.equal(before, torch.get_rng_state())


def test_without_the_package_it_says_what_to_install(monkeypatch):
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"lightning, which is not installed: pip install throughtime\[lightning\]"):
        _ = tt.lightning.Watch


def test_both_names_of_the_package_are_served(monkeypatch):
    old_name = types.ModuleType("pytorch_lightning")
    old_name.Callback = type("Callback", (), {})
    assert issubclass(tt.lightning.Guard, lightning.Callback)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", old_name)
    both = tt.lightning.Guard
    assert issubclass(both, lightning.Callback) and issubclass(both, old_name.Callback) and both is tt.lightning.Guard
    monkeypatch.delitem(sys.modules, "lightning.pytorch")
    assert not issubclass(tt.lightning.Guard, lightning.Callback)


def test_the_page_is_true(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(under("Lightning"), {"module": Module(), "data": batches()})
    assert "Watch of Module: 12 training steps" in capsys.readouterr().out and (tmp_path / "watch.jsonl").exists()
