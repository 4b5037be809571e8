"""What the guard does about bad steps: skip, go back, lower, clip, stop; and that it puts back what was there."""

import copy
import logging
import math

import pytest
import torch
from torch import nn

import throughtime as tt
from throughtime.cures import Guard, Incident, flight
from throughtime.errors import ConfigError, GuardStopped

T, B = 6, 4


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.norm, self.head = nn.LSTM(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1)

    def forward(self, x):
        return self.head(self.norm(self.lstm(x)[0].flatten(0, 1)))


def everything(model, opt, *others):
    state = {n: v.clone() for n, v in model.state_dict().items()}
    kept = {i: copy.deepcopy(s) for i, s in opt.state_dict()["state"].items()}
    return state, kept, [copy.deepcopy(o.state_dict()) for o in others]


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(v, w) for v, w in zip(a, b, strict=True))
    return a == b


def run(guard, model, opt, x, factor=1.0, plan=None):
    with guard.step() as step:
        opt.zero_grad()
        step.backward(model(x).square().mean() * factor)
        opt.step()
        if plan is not None:
            plan.step()
    return step


def setup(optimizer=torch.optim.Adam, lr=0.01, **options):
    model = Net()
    opt = optimizer(model.parameters(), lr)
    return model, opt, Guard(model, opt, **{"every": 1, **options})


def bad():
    x = torch.randn(T, B, 3)
    x[2, 1, 0] = math.nan
    return x


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


# --- loops of other forms ---------------------------------------------------------------------------------------------


def test_accumulation_over_several_blocks():
    model, opt, guard = setup()
    opt.zero_grad()
    for i in range(8):
        x = bad() if i == 5 else torch.randn(T, B, 3)
        with guard.step() as step:
            step.backward(model(x).square().mean() / 2)
            if i % 2:
                opt.step()
                opt.zero_grad()
    assert guard.iteration == 4
    record = guard.incidents[0].record
    assert (record.iteration, record.cause, record.t, record.sample) == (2, flight.INPUT, 2, 1)
    assert len(guard.incidents) == 1


@pytest.mark.parametrize("drawn", ["around", "inside"])
def test_accumulation_goes_back_to_where_it_began(drawn):
    torch.manual_seed(0)
    model, opt, guard = setup(torch.optim.SGD, every=1)
    data = [torch.randn(T, B, 3) + i for i in range(12)]
    source, seen, broken = iter(guard.batches(data)), [], False
    for i in range(10):
        x = next(source) if drawn == "around" else None
        with guard.step() as step:
            x = next(source) if x is None else x
            seen.append(next(k for k, v in enumerate(data) if v is x))
            step.backward(model(x).square().mean() / 2)
            if i == 5 and not broken:
                broken = True
                with torch.no_grad():
                    model.head.bias.fill_(math.nan)
            if i % 2:
                opt.step()
                opt.zero_grad()
    assert guard.incidents[0].action == "back" and guard.incidents[0].back_to == 1
    assert seen == [0, 1, 2, 3, 4, 5, 2, 3, 4, 5]  # whole steps: the pair from before the last good update


def test_going_back_by_hand_between_two_halves_of_a_step_forgets_the_first():
    model, opt, guard = setup(torch.optim.SGD, every=1)
    for i in range(5):
        with guard.step() as step:
            step.backward(model(torch.randn(T, B, 3)).square().mean())
            if i % 2:
                opt.step()
                opt.zero_grad()
    assert guard.go_back() == 1
    run(guard, model, opt, torch.randn(T, B, 3))
    assert guard.snapshots[-1].iteration == 1  # what the third step began is not finished with other weights
    before = everything(model, opt)
    run(guard, model, opt, torch.randn(T, B, 3))
    assert guard.go_back() == 3 and equal(before, everything(model, opt))


def test_a_snapshot_by_hand_begins_with_the_next_batch():
    model, opt, guard = setup(every=1000)
    seen = []
    for k, batch in enumerate(guard.batches([torch.full((T, B, 3), float(i)) for i in range(4)])):
        seen.append(int(batch[0, 0, 0]))
        run(guard, model, opt, batch + 0.1 * torch.randn(T, B, 3))
        if k == 1:
            guard.snapshot()
        if k == 2:
            assert guard.go_back() == 2
    assert seen == [0, 1, 2, 2, 3]


def test_an_optimiser_that_keeps_infinity_is_a_fault():
    model = nn.Linear(2, 1, bias=False)
    opt = torch.optim.Adam(model.parameters(), 0.01)
    guard = Guard(model, opt, every=1, explode=None)
    for i in range(4):
        with guard.step() as step:
            opt.zero_grad()
            # Its square is not in float32: without the guard Adam would divide by infinity from here on.
            step.backward(model(torch.ones(1, 2)).sum() * (1e21 if i == 1 else 1.0))
            opt.step()
        assert step.ok == (i != 2)
    incident = guard.incidents[0]
    assert (incident.action, incident.back_to) == ("back", 1)
    assert incident.fault == "the norm of what the optimiser keeps is inf"
    assert (incident.record.cause, incident.record.part) == (flight.UPDATE, "exp_avg_sq of weight")
    assert all(bool(v.isfinite().all()) for s in opt.state.values() for v in s.values())


def test_a_model_that_is_called_by_its_parts():
    model, opt, guard = setup()

    def step(x):
        with guard.step() as step:
            opt.zero_grad()
            y = model.lstm(x)[0]
            step.backward(model.head(model.norm(y.flatten(0, 1))).square().mean())
            opt.step()
        return step

    step(torch.randn(T, B, 3))
    record = step(bad()).incident.record
    assert (record.cause, record.module, record.t, record.sample) == (flight.INPUT, "lstm", 2, 1)


def test_a_model_that_was_not_called_is_said():
    model, opt, guard = setup()
    with guard.step() as step:
        step.backward(sum(p.sum() for p in model.parameters()) * math.nan)
        opt.step()
    record = step.incident.record
    assert record.cause == flight.UNKNOWN and any("no call of the model" in r for r in record.ruled_out)
    assert "every weight is finite" in str(record)


def test_a_step_that_cannot_be_run_again_is_said():
    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.calls = nn.Parameter(torch.ones(())), 0

        def forward(self, x):
            self.calls += 1
            return x * self.w / (0.0 if self.calls == 3 else 1.0)

    model = Moody()
    opt = torch.optim.SGD(model.parameters(), 0.1)
    guard = Guard(model, opt)
    for _ in range(3):
        with guard.step() as step:
            step.backward(model(torch.ones(3)).sum())
            opt.step()
    record = step.incident.record
    assert record.cause == flight.UNKNOWN and any("other numbers" in r for r in record.ruled_out)

    guard = Guard(model, opt)
    x = torch.ones(3)
    with guard.step() as step:
        loss = model(x).sum()
        step.backward(loss * math.nan)
        x.mul_(2)
        opt.step()
    assert any("changed in place" in r for r in step.incident.record.ruled_out)

    guard, model.calls = Guard(model, opt), "one"
    model.forward = lambda x: x * model.w  # type: ignore[method-assign]
    with guard.step() as step:
        loss = model(torch.ones(3)).sum()
        del model.forward
        step.backward(loss * math.nan)
        opt.step()
    assert any("TypeError" in r for r in step.incident.record.ruled_out)


def test_without_the_recorder():
    model, opt, guard = setup(record=False)
    run(guard, model, opt, torch.randn(T, B, 3))
    assert run(guard, model, opt, bad()).incident.record is None


def test_a_carried_state_is_put_back():
    lstm = tt.nn.LSTM(3, 5)
    opt = torch.optim.SGD(lstm.parameters(), 0.01)
    guard = Guard(lstm, opt, every=1)
    for i in range(6):
        x = torch.randn(T, B, 3)
        x[0, 0, 0] = math.nan if i == 3 else 0.0
        with guard.step() as step:
            opt.zero_grad()
            y, state = lstm(x, guard.carry)
            step.backward(y.square().mean())
            opt.step()
            guard.carry = tuple(s.detach() for s in state)
        assert all(bool(s.isfinite().all()) for s in guard.carry)
    assert [i.iteration for i in guard.incidents] == [3]


def test_a_scaler_that_never_stops_skipping_is_a_fault():
    model, opt, _ = setup(torch.optim.SGD)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    guard = Guard(model, opt, scaler=scaler)
    told = None
    for i in range(14):
        with guard.step() as step:
            opt.zero_grad()
            out = model(torch.randn(T, B, 3))
            out.register_hook(lambda g: g * math.nan)
            step.backward(out.square().mean())
            scaler.step(opt)
            scaler.update()
        if step.incident:
            told = i
            break
        assert not step.ok
    assert told == 10 and step.incident.record.cause == flight.LOSS


def test_two_optimisers():
    a, b = nn.Linear(2, 2), nn.Linear(2, 1)
    model = nn.Sequential(a, b)
    opts = [torch.optim.SGD(a.parameters(), 0.1), torch.optim.Adam(b.parameters(), 0.1)]
    guard = Guard(model, opts, every=1)
    for i in range(3):
        before = [p.detach().clone() for p in model.parameters()]
        with guard.step() as step:
            model.zero_grad()
            step.backward(model(torch.randn(3, 2)).square().mean() * (math.nan if i == 2 else 1))
            for opt in opts:
                opt.step()
        moved = [not torch.equal(v, p) for v, p in zip(before, model.parameters(), strict=True)]
        assert all(moved) if i < 2 else not any(moved)


# --- the state of the guard, and what it refuses ----------------------------------------------------------------------


def test_state_dict(tmp_path):
    model, opt, guard = setup(tries=2)
    for _ in range(4):
        run(guard, model, opt, torch.randn(T, B, 3))
    run(guard, model, opt, torch.randn(T, B, 3), factor=math.nan)
    run(guard, model, opt, torch.randn(T, B, 3), factor=math.nan)
    torch.save(guard.state_dict(), tmp_path / "guard.pt")
    other = Guard(model, opt, tries=2)
    other.load_state_dict(torch.load(tmp_path / "guard.pt", weights_only=True))
    assert other.state_dict() == guard.state_dict()
    assert (other.iteration, other.factor, other.rule.backs) == (6, 0.5, 1)
    assert str(other.incidents[1]) == str(guard.incidents[1])
    with pytest.raises(ConfigError, match=r"expected what Guard.state_dict gives"):
        other.load_state_dict({"factor": 1})


def test_an_incident_can_be_saved(tmp_path):
    model, opt, guard = setup()
    run(guard, model, opt, torch.randn(T, B, 3))
    incident = run(guard, model, opt, bad()).incident
    loaded = Incident.load(incident.save(tmp_path / "incident"))
    assert str(loaded) == str(incident) and loaded.to_dict() == incident.to_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"explode": 1.0}, "explode must be a number above 1"),
        ({"every": 0}, "every must be a whole number"),
        ({"share": 0}, "share must lie between 0 and 1"),
        ({"clip": -1.0}, "clip must be a positive number"),
        ({"tries": -1}, "tries must be a whole number"),
        ({"lower": 1.0}, "lower must lie between 0 and 1"),
        ({"calm": 0}, "calm must be a whole number"),
        ({"data": [1, 2]}, r"list|int has no state_dict"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    model = Net()
    with pytest.raises(ConfigError, match=message):
        Guard(model, torch.optim.SGD(model.parameters(), 0.1), **arguments)


def test_optimisers_that_call_a_closure_are_refused():
    model = Net()
    with pytest.raises(ConfigError, match="L-BFGS is not supported"):
        Guard(model, torch.optim.LBFGS(model.parameters()))
    with pytest.raises(ConfigError, match=r"must be a torch\.optim\.Optimizer"):
        Guard(model, model)
    with pytest.raises(ConfigError, match=r"expected a torch.nn.Module"):
        Guard(3, torch.optim.SGD(model.parameters(), 0.1))
    opt = torch.optim.SGD(model.parameters(), 0.1)
    guard = Guard(model, opt)
    with pytest.raises(ConfigError, match=r"optimizer.step\(closure\) is not supported"), guard.step():
        opt.step(lambda: model(torch.randn(T, B, 3)).sum())
    with pytest.raises(ConfigError, match="open already"), guard.step(), guard.step():
        pass
    with pytest.raises(ConfigError, match="must be a tensor with one number; came a tensor"), guard.step() as step:
        step.check(torch.zeros(2))
    with pytest.raises(ConfigError, match="no good snapshot yet"):
        guard.go_back()
