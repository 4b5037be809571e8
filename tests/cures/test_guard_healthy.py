"""A healthy run under the guard is number for number the run without it, and nothing of the guard is left behind."""

import contextlib
import random

import numpy
import pytest
import torch
from torch import nn

import throughtime as tt
from throughtime.cures import Guard


class Net(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.norm, self.head = layer, nn.BatchNorm1d(6), nn.Linear(6, 2)

    def forward(self, x, state=None):
        y, state = self.layer(x, state)
        y = nn.functional.dropout(y, 0.2, self.training)
        return self.head(self.norm(y.flatten(0, 1)).view_as(y)), state


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 1e-2),
    "adamw, amsgrad": lambda p: torch.optim.AdamW(p, 1e-2, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.5),
    "fused adam": lambda p: torch.optim.Adam(p, 1e-2, fused=True),
}
SCHEDULES = {
    "none": lambda o: None,
    "onecycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=40),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 40),
    "warm up, then exponential": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=5), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)],
        [5],
    ),
}


def train(optimizer, schedule, layer, guarded, steps=25, stateful=False, accumulate=1, form="backward", **options):
    """All that a run leaves: losses, weights, buffers, the optimiser's state, the schedule, the generators."""
    torch.manual_seed(3), random.seed(3), numpy.random.seed(3)
    model = Net(layer())
    opt = OPTIMIZERS[optimizer](model.parameters())
    plan = SCHEDULES[schedule](opt)
    guard = Guard(model, opt, scheduler=plan, every=3, **options) if guarded else None
    losses, state = [], None
    for _ in range(steps):
        batches = [(torch.randn(7, 4, 3), torch.randn(7, 4, 2)) for _ in range(accumulate)]
        random.random(), numpy.random.rand()
        with guard.step() if guarded else contextlib.nullcontext() as step:
            opt.zero_grad()
            for x, target in batches:
                out, new = model(x, state)
                loss = (out - target).square().mean()
                if guarded and form == "backward":
                    step.backward(loss)
                elif guarded and form == "function":
                    step.backward(lambda loss=loss: loss)
                else:
                    (step.check(loss) if guarded else loss).backward()
            opt.step()
            if plan is not None:
                plan.step()
        if stateful:
            state = tuple(s.detach() for s in new) if isinstance(new, tuple) else new.detach()
        losses.append(loss.detach())
    kept = [v for s in opt.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    ends = torch.tensor([random.random(), numpy.random.rand(), opt.param_groups[0]["lr"]], dtype=torch.float64)
    found = [*losses, *model.state_dict().values(), *kept, ends, torch.get_rng_state()]
    return [v.detach().clone() for v in found], guard


def same(a, b):
    return len(a) == len(b) and all(torch.equal(v, w) for v, w in zip(a, b, strict=True))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_bit_for_bit(optimizer, schedule):
    def layer():
        return nn.LSTM(3, 6, 2, dropout=0.3)

    plain, _ = train(optimizer, schedule, layer, False)
    guarded, guard = train(optimizer, schedule, layer, True)
    assert same(plain, guarded)
    assert guard.incidents == [] and guard.cost.snapshots > 5


@pytest.mark.parametrize("layer", [lambda: nn.GRU(3, 6), lambda: tt.nn.LSTM(3, 6), lambda: nn.RNN(3, 6)])
@pytest.mark.parametrize("form", ["backward", "check", "function"])
def test_bit_for_bit_with_carried_state_and_accumulation(layer, form):
    how = {"stateful": True, "accumulate": 2, "form": form}
    assert same(train("momentum", "cosine", layer, False, **how)[0], train("momentum", "cosine", layer, True, **how)[0])


def test_bit_for_bit_without_the_recorder():
    def layer():
        return nn.LSTM(3, 6)

    assert same(train("adam", "none", layer, False)[0], train("adam", "none", layer, True, record=False)[0])


@pytest.mark.parametrize("fused", [False, True])
def test_bit_for_bit_under_autocast_with_a_scaler(fused):
    def run(guarded):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        opt = torch.optim.Adam(model.parameters(), 1e-2, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=3)  # it skips its first steps
        guard = Guard(model, opt, scaler=scaler, every=2) if guarded else None
        skipped = 0
        for _ in range(12):
            x = torch.randn(5, 3)
            with guard.step() if guarded else contextlib.nullcontext() as step:
                opt.zero_grad()
                with torch.autocast("cpu", torch.bfloat16):
                    loss = (model(x) - 1).square().mean() * 1e3
                if guarded:
                    step.backward(loss)
                else:
                    scaler.scale(loss).backward()
                scaler.step(opt)
                scaler.update()
            skipped += guarded and not step.ok
        return [*(p.detach().clone() for p in model.parameters()), torch.tensor(scaler.get_scale())], guard, skipped

    plain, guarded = run(False), run(True)
    assert same(plain[0], guarded[0])
    assert guarded[1].incidents == [] and guarded[2] > 0  # the scaler's own skips are no incidents


def test_nothing_is_left_behind():
    model = Net(nn.LSTM(3, 6))
    opt = torch.optim.SGD(model.parameters(), 0.1)
    guard = Guard(model, opt, lower=0.5)

    def everything():
        hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
        return hooks, len(opt._optimizer_step_pre_hooks), len(opt._optimizer_step_post_hooks), opt.param_groups[0]["lr"]

    before = everything()
    guard.factor = 0.25
    for fails in (False, True):
        with contextlib.suppress(KeyError), guard.step() as step:
            step.backward(model(torch.randn(5, 4, 3))[0].square().mean())
            opt.step()
            if fails:
                raise KeyError("the user's own")
        assert everything() == before


def test_the_users_own_error_passes_and_the_next_step_works():
    model = Net(nn.LSTM(3, 6))
    opt = torch.optim.SGD(model.parameters(), 0.1)
    guard = Guard(model, opt)
    with pytest.raises(ZeroDivisionError), guard.step():
        _ = 1 / 0
    with guard.step() as step:
        step.backward(model(torch.randn(5, 4, 3))[0].square().mean())
        opt.step()
    assert step.ok and guard.incidents == []


def test_cadence_follows_the_cost():
    model = nn.Linear(1, 1)
    opt = torch.optim.SGD(model.parameters(), 0.1)
    found = []
    for share in (1e-9, 0.999):
        guard = Guard(model, opt, share=share)
        for _ in range(30):
            with guard.step() as step:
                step.backward(model(torch.randn(2, 1)).square().mean())
                opt.step()
        found.append(guard.cost)
    assert (found[0].snapshots, found[0].every) == (2, 1000)  # after the second it knows
    assert 10 <= found[1].every < 1000 and found[1].snapshots > 1
    cost = guard.cost
    assert cost.steps == 30 and 0 < cost.share < 1 and cost.total >= cost.checks + cost.copies
    assert "30 steps" in str(cost)
