"""What the guard does about bad steps: skip, go back, lower, clip, stop; and that it puts back what was there."""

import logging
import math

import pytest
import torch
from torch import nn

from tests.cures.guarded import B, Net, T, bad, equal, everything, run, setup
from throughtime.cures import Guard, flight
from throughtime.errors import GuardStopped

# --- skip -------------------------------------------------------------------------------------------------------------


def test_a_skipped_step_changes_nothing():
    model, opt, guard = setup()
    for _ in range(3):
        run(guard, model, opt, torch.randn(T, B, 3))
    guard.carry = torch.ones(2)
    before = everything(model, opt)
    with guard.step() as step:
        opt.zero_grad()
        step.backward(model(bad()).square().mean())  # the batch norm takes the NaN up
        opt.step()
        guard.carry = torch.full((2,), math.nan)
    assert not step.ok and step.incident.action == "skip"
    assert equal(before, everything(model, opt))
    assert torch.equal(guard.carry, torch.ones(2))
    assert all(p.grad is None for p in model.parameters())
    assert run(guard, model, opt, torch.randn(T, B, 3)).ok
    assert [i.iteration for i in guard.incidents] == [3] and guard.iteration == 5


def test_bad_batches_are_skipped_without_shorter_steps_until_there_are_too_many_in_a_row():
    model, opt, guard = setup(tries=3)
    run(guard, model, opt, torch.randn(T, B, 3))
    for _ in range(6):
        for _ in range(3):
            assert run(guard, model, opt, bad()).incident.action == "skip"
        assert run(guard, model, opt, torch.randn(T, B, 3)).ok
    assert guard.factor == 1.0
    for _ in range(3):
        run(guard, model, opt, bad())
    with pytest.raises(GuardStopped, match=r"stopped at iteration 28.*bad input: lstm, t = 2, input, sample 1"):
        run(guard, model, opt, bad())


# --- go back ----------------------------------------------------------------------------------------------------------


def test_going_back_restores_weights_optimiser_schedule_buffers_generators_and_data():
    model = Net()
    opt = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    plan = torch.optim.lr_scheduler.ExponentialLR(opt, 0.9)
    guard = Guard(model, opt, scheduler=plan, every=100)
    seen, rates, drawn, states, when = [], [], [], [], None
    for batch in guard.batches([torch.full((T, B, 3), float(i)) + torch.randn(T, B, 3) for i in range(8)]):
        seen.append(round(float(batch.mean())))
        rates.append(opt.param_groups[0]["lr"])
        drawn.append(torch.get_rng_state())
        states.append(everything(model, opt, plan))
        if len(seen) == 6 and when is None:
            when = len(seen)
            with torch.no_grad():
                model.lstm.weight_hh_l0[3, 2] = math.inf
        guard.carry = len(seen)
        run(guard, model, opt, batch, plan=plan)
    incident = guard.incidents[0]
    assert (incident.action, incident.back_to, incident.factor) == ("back", 0, 0.5)
    assert (incident.record.cause, incident.record.part) == (flight.PARAMETER, "weight_hh_l0")
    assert seen == [0, 1, 2, 3, 4, 5, *range(8)]  # the very batches, from the one in hand at the snapshot
    assert rates[6:] == rates[:6] + [pytest.approx(0.1 * 0.9**k) for k in (6, 7)]
    assert torch.equal(drawn[6], drawn[0]) and equal(states[6], states[0])
    assert guard.incidents == [incident]


def test_the_lowered_rate_is_there_in_the_step_alone():
    model = nn.Linear(1, 1, bias=False)
    opt = torch.optim.SGD(model.parameters(), 0.1)
    guard = Guard(model, opt)
    guard.factor = 0.25
    before = model.weight.item()
    with guard.step() as step:
        step.backward(model(torch.ones(1, 1)).sum())
        assert opt.param_groups[0]["lr"] == 0.1
        opt.step()
        assert opt.param_groups[0]["lr"] == 0.1
    assert before - model.weight.item() == pytest.approx(0.025, rel=1e-5)


def test_a_second_failure_goes_back_further_and_lowers_again():
    model, opt, guard = setup(every=2)
    for _ in range(6):
        run(guard, model, opt, torch.randn(T, B, 3))
    kept = []
    for i in range(3):
        with torch.no_grad():
            model.head.bias.fill_(math.nan)
        kept.append(run(guard, model, opt, torch.randn(T, B, 3)).incident)
        assert kept[-1].factor == 0.5 ** (i + 1)
    assert [i.action for i in kept] == ["back"] * 3
    assert [i.back_to for i in kept] == [4, 2, 2]


def test_an_exploded_gradient_first_skips_then_lowers_and_clips():
    model, opt, guard = setup(torch.optim.SGD, 0.0)
    torch.manual_seed(1)
    x = torch.randn(T, B, 3)
    for _ in range(12):
        run(guard, model, opt, x)
    largest = guard.limits["gradient"].largest

    # The loss hardly moves: its gradient alone is a thousand times larger.
    def explode():
        with guard.step() as step:
            opt.zero_grad()
            out = model(x)
            step.backward(out.square().mean() + 1e4 * (out - out.detach()).mean())
            opt.step()
        return step.incident

    first, second, third = explode(), explode(), explode()
    assert [i.action for i in (first, second, third)] == ["skip", "back", "back"]
    assert "the norm of the gradient is" in first.fault and first.record is not None
    assert (first.factor, first.clip) == (1.0, None)
    assert (second.factor, second.clip) == (0.5, pytest.approx(largest))
    assert (third.factor, third.clip) == (0.25, pytest.approx(largest / 2))


def test_the_clip_shortens_the_gradient_that_the_optimiser_gets():
    model = nn.Linear(2, 1, bias=False)
    opt = torch.optim.SGD(model.parameters(), 1.0)
    guard = Guard(model, opt, clip=0.5)
    before = model.weight.detach().clone()
    with guard.step() as step:
        step.backward(model(torch.tensor([[3.0, 4.0]])).sum())
        opt.step()
    torch.testing.assert_close(before - model.weight, torch.tensor([[0.3, 0.4]]))


def test_an_exploded_loss_is_told_with_the_cliff_that_the_update_before_it_was():
    torch.manual_seed(0)
    weight = nn.Linear(1, 1, bias=False)
    opt = torch.optim.SGD(weight.parameters(), 0.1)
    guard = Guard(weight, opt, every=1)
    x = torch.ones(1, 1)
    for i in range(14):
        if i == 12:
            opt.param_groups[0]["lr"] = 100.0  # one step that is much too long
        with guard.step() as step:
            opt.zero_grad()
            step.backward(lambda: (weight(x) - 1).square().sum() + 0.1)
            opt.step()
        if not step.ok:
            break
    incident = guard.incidents[0]
    assert incident.iteration == 13 and incident.fault.startswith("the loss is")
    assert (incident.action, incident.back_to) == ("back", 12)  # the weights are those beyond the cliff: no skipping
    assert incident.record.cause == flight.UPDATE and "that update was too long" in incident.record.notes[0]
    picture = incident.cliff
    assert picture.loss[(picture.at - 1).abs().argmin()] > 50 * picture.loss[(picture.at).abs().argmin()]
    assert picture.best < 0.05 and "too long" in str(picture)


def test_an_exploded_loss_without_a_picture_is_not_located():
    torch.manual_seed(0)
    model, opt, guard = setup(torch.optim.SGD, 0.01)
    for _ in range(12):
        run(guard, model, opt, torch.randn(T, B, 3))
    record = run(guard, model, opt, torch.randn(T, B, 3), factor=1e5).incident.record
    assert record.cause == flight.UNKNOWN and any("the loss is finite" in r for r in record.ruled_out)


# --- stop -------------------------------------------------------------------------------------------------------------


def test_it_stops_at_the_last_good_state_and_says_what_it_tried(caplog):
    model, opt, guard = setup(every=2, tries=2)
    told = []
    guard.on_incident = told.append
    for _ in range(5):
        run(guard, model, opt, torch.randn(T, B, 3))
    kept = everything(model, opt)
    guard.snapshot()
    with pytest.raises(GuardStopped) as error, caplog.at_level(logging.WARNING, "throughtime.guard"):
        for _ in range(10):
            run(guard, model, opt, torch.randn(T, B, 3), factor=math.nan)
    message = str(error.value)
    assert "stopped at iteration 8: the loss is nan (the loss itself" in message
    assert "at iteration 5 it skipped the step; at iteration 6 it went back" in message
    assert "learning rate x 0.25" in message and "its last good state" in message
    assert [i.action for i in told] == ["skip", "back", "back", "stop"] == [i.action for i in guard.incidents]
    assert len(caplog.records) == 4
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert not equal(kept, everything(model, opt)) and guard.incidents[-1].back_to == 4


def test_a_run_that_is_bad_from_the_start_stops():
    model, opt, guard = setup()
    with pytest.raises(
        GuardStopped, match=r"Tried: at iteration 0 it skipped the step. Now the weights are as they were"
    ):
        for _ in range(3):
            run(guard, model, opt, torch.randn(T, B, 3), factor=math.inf)


def test_calm_steps_forgive():
    model, opt, guard = setup(calm=4, explode=None)
    actions = []
    for i in range(24):
        factor = math.nan if i % 6 == 5 else 1.0
        step = run(guard, model, opt, torch.randn(T, B, 3), factor=factor)
        actions += [step.incident.action] if step.incident else []
    assert actions == ["skip"] * 4 and guard.factor == 1.0
