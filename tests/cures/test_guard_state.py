"""What the guard remembers and saves, and what it refuses."""

import contextlib
import math

import pytest
import torch

from tests.cures.guarded import B, Net, T, bad, run, setup
from throughtime.cures import Guard, Incident
from throughtime.errors import ConfigError


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
        ({"share": "1 %"}, "share must lie between 0 and 1"),
        ({"clip": -1.0}, "clip must be a positive number"),
        ({"clip": "1"}, "clip must be a positive number"),
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


def test_what_is_no_optimiser_or_no_block_is_refused():
    model = Net()
    with pytest.raises(ConfigError, match="L-BFGS is not supported"):
        Guard(model, torch.optim.LBFGS(model.parameters()))
    with pytest.raises(ConfigError, match="holds no parameter of this model"):
        Guard(model, torch.optim.SGD(Net().parameters(), 0.1))
    with pytest.raises(ConfigError, match=r"must be a torch\.optim\.Optimizer"):
        Guard(model, model)
    with pytest.raises(ConfigError, match=r"expected a torch.nn.Module"):
        Guard(3, torch.optim.SGD(model.parameters(), 0.1))
    opt = torch.optim.SGD(model.parameters(), 0.1)
    guard = Guard(model, opt)
    with pytest.raises(ConfigError, match="open already"), guard.step(), guard.step():
        pass
    with pytest.raises(ConfigError, match="must be a tensor with one number; came a tensor"), guard.step() as step:
        step.check(torch.zeros(2))
    with pytest.raises(ConfigError, match="no good snapshot yet"):
        guard.go_back()


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_a_closure_within_the_optimisers_step(optimizer):
    batches = [torch.randn(T, B, 3) for _ in range(6)]

    def trained(guarded, given):
        torch.manual_seed(1)
        model = Net()
        opt = optimizer(model.parameters(), lr=0.1)
        guard = Guard(model, opt, every=2)
        for x in given:

            def closure(x=x):
                opt.zero_grad()
                loss = model(x).square().mean()
                (step.check(loss) if guarded else loss).backward()
                return loss

            with guard.step() if guarded else contextlib.nullcontext() as step:
                opt.step(closure)
        return guard, [p.detach().clone() for p in model.parameters()]

    for with_guard, without in zip(trained(True, batches)[1], trained(False, batches)[1], strict=True):
        assert torch.equal(with_guard, without)
    guard, weights = trained(True, [*batches[:3], bad(), *batches[3:]])
    assert len(guard.incidents) == 1 and guard.incidents[0].action == "skip"
    assert guard.incidents[0].record.cause == "bad input"
    for survived, without in zip(weights, trained(False, batches)[1], strict=True):
        assert torch.equal(survived, without)


def test_a_lowered_rate_holds_within_a_closures_step():
    model = Net()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = Guard(model, opt)
    guard.factor = 0.5
    before = [p.detach().clone() for p in model.parameters()]

    def closure():
        opt.zero_grad()
        loss = model(torch.ones(T, B, 3)).square().mean()
        loss.backward()
        return loss

    with guard.step():
        opt.step(closure)
    assert opt.param_groups[0]["lr"] == 0.1
    for p, was in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), was - 0.05 * p.grad)
