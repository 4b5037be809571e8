"""The guard in training loops of other forms: accumulation, parts, carried states, scalers, two optimisers."""

import math

import pytest
import torch
from torch import nn

import throughtime as tt
from tests.cures.guarded import B, T, bad, equal, everything, run, setup
from throughtime.cures import Guard, flight


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
