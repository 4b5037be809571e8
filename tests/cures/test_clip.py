"""Clipping: the numbers of torch, per group, by value; what is done with NaN; the record."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from throughtime import cures
from throughtime.errors import ConfigError, NonFiniteError


def with_gradients(scale=1.0):
    model = nn.Sequential(nn.LSTM(3, 4), nn.Linear(4, 2))
    for p in model.parameters():
        p.grad = scale * torch.randn_like(p)
    return model


def grads(model):
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("max_norm", [0.3, 1.0, 100.0])
def test_clip_by_norm_has_torchs_numbers(max_norm):
    model = with_gradients()
    before = grads(model)
    step = cures.ClipNorm(max_norm)(model)
    ours = grads(model)
    for p, g in zip(model.parameters(), before, strict=True):
        p.grad = g.clone()
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    for a, b in zip(ours, grads(model), strict=True):
        assert torch.equal(a, b)
    assert step.before == norm.item()
    after = math.sqrt(sum(float((g.double() ** 2).sum()) for g in ours))
    assert step.after == pytest.approx(after, rel=1e-5)
    assert step.action == ("kept" if max_norm == 100.0 else "clipped")


def test_takes_a_generator_of_parameters_as_torch_does():
    model = with_gradients()
    step = cures.ClipNorm(0.5)(model.parameters())
    assert step.before > 0.5 and step.after == pytest.approx(0.5, rel=1e-4)
    with pytest.raises(ConfigError, match="expected a module or its parameters"):
        cures.ClipNorm(0.5)(["weight"])


def test_a_norm_that_overflows_is_not_taken_for_zero():
    """Finite gradients of 1e30 have a norm beyond float32; torch's own clipping turns them into 0."""
    p = nn.Parameter(torch.zeros(100))
    p.grad = torch.full((100,), 1e30)
    assert nn.utils.get_total_norm([p.grad]).isinf()
    step = cures.ClipNorm(1.0)([p])
    assert step.before == pytest.approx(1e31)
    torch.testing.assert_close(p.grad, torch.full((100,), 0.1))


def test_clip_by_value():
    model = with_gradients(20.0)
    before = grads(model)
    step = cures.ClipValue(15.0)(model)
    for g, old in zip(grads(model), before, strict=True):
        assert torch.equal(g, old.clamp(-15, 15))
    assert step.action == "clipped" and step.after < step.before
    assert cures.ClipValue(15.0)(model).action == "kept"


def test_groups_are_clipped_apart():
    model = with_gradients()
    rnn, head = list(model[0].parameters()), list(model[1].parameters())
    alone = grads(model)
    clip = cures.ClipGroups({"rnn": cures.ClipNorm(0.5), "head": cures.ClipNorm(1e6)})
    steps = clip({"rnn": model[0], "head": iter(head)})
    assert steps["rnn"].after == pytest.approx(0.5, rel=1e-4) and steps["head"].action == "kept"
    assert torch.equal(head[0].grad, alone[len(rnn)])
    optimizer = torch.optim.SGD([{"params": rnn, "name": "rnn"}, {"params": head, "name": "head"}], lr=0.1)
    assert clip(optimizer).keys() == {"rnn", "head"}
    with pytest.raises(ConfigError, match=r"the groups are \['rnn'\]"):
        clip({"rnn": model[0]})


def test_nan_is_named_and_nothing_changed():
    model = with_gradients()
    model[0].weight_hh_l0.grad[0, 0] = math.nan
    model[1].bias.grad[1] = math.inf
    before = grads(model)
    with pytest.raises(NonFiniteError, match=r"0\.weight_hh_l0 \(NaN\), 1\.bias"):
        cures.ClipNorm(1.0)(model)
    for a, b in zip(grads(model), before, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_skip_takes_the_step_away_with_its_momentum():
    model = with_gradients()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)
    optimizer.step()
    model[0].weight_hh_l0.grad[0, 0] = math.inf
    before = [p.detach().clone() for p in model.parameters()]
    clip = cures.ClipNorm(1.0, nonfinite="skip")
    assert clip(model).action == "skipped"
    optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert clip.record.nonfinite == 1


def test_leave_and_groups_of_which_one_is_broken():
    model = with_gradients()
    model[1].bias.grad[0] = math.nan
    before = grads(model)
    assert cures.ClipNorm(0.1, nonfinite="leave")(model).action == "left"
    groups = {"rnn": model[0], "head": model[1]}
    clip = cures.ClipGroups({"rnn": cures.ClipNorm(0.1), "head": cures.ClipNorm(0.1)}, nonfinite="leave")
    assert {s.action for s in clip(groups).values()} == {"left"}
    assert torch.equal(model[0].weight_hh_l0.grad, before[1])  # not even the sound group
    clip.nonfinite = "raise"
    with pytest.raises(NonFiniteError, match="head: bias"):
        clip(groups)
    clip.nonfinite = "skip"
    assert {s.action for s in clip(groups).values()} == {"skipped"}
    assert all(p.grad is None for p in model.parameters())


def test_the_record():
    clip = cures.ClipNorm(1.0, keep=2)
    p = nn.Parameter(torch.zeros(1))
    for g in (3.0, 0.5, 2.0):
        p.grad = torch.tensor([g])
        clip([p])
    assert clip.record.norms == (0.5, 2.0)
    assert (clip.record.calls, clip.record.clipped) == (3, 2)
    assert "Clipped 2 of 3 steps (66.7%)" in str(clip.record)


def test_numbers_of_numpy_are_numbers():
    assert cures.ClipNorm(np.float32(2)).max_norm == 2.0 and cures.ClipValue(np.int64(3)).value == 3.0


def test_no_gradients_at_all():
    step = cures.AutoClip()(nn.Linear(2, 2))
    assert (step.before, step.action) == (0.0, "kept")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: cures.ClipNorm(0), "max_norm must be a finite number above 0; came 0"),
        (lambda: cures.ClipNorm(math.inf), "came inf"),
        (lambda: cures.ClipValue(-1), "value must be"),
        (lambda: cures.ClipNorm(1, nonfinite="zero"), "nonfinite must be one of raise, skip, leave"),
        (lambda: cures.ClipNorm(1, keep=0), "keep must be at least 1"),
        (lambda: cures.ClipGroups({}), "at least one group"),
        (lambda: cures.ClipNorm("1"), "came '1'"),
        (lambda: cures.ClipGroups({"0": cures.ClipNorm(1)})(nn.Linear(2, 2)), "parameters of each group.*came Linear"),
        (lambda: cures.AutoClip("10"), "percentile must lie in .*came '10'"),
        (lambda: cures.AutoClip(0), r"percentile must lie in \(0, 100\]"),
        (lambda: cures.ZClip(alpha=1.0), r"alpha, the smoothing, must lie in \(0, 1\)"),
        (lambda: cures.ZClip(warmup=1), "warmup must be at least 2"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
