"""The guard's parts by themselves: the norm, the limits, the rule, snapshots, batches that go back."""

import math

import pytest
import torch
from torch import nn

from throughtime.cures import Batches, Parts, Rule, Snapshot
from throughtime.cures.guard_checks import WARM_UP, Limit, broken, clip_gradients, total_norm
from throughtime.errors import ConfigError


def test_the_norm_is_that_of_all_numbers_however_large():
    tensors = [torch.randn(3, 4), torch.randn(5), torch.empty(0)]
    torch.testing.assert_close(total_norm(tensors), torch.cat([v.flatten() for v in tensors]).norm().item())
    assert total_norm([]) == 0.0
    assert total_norm([torch.full((4,), 1e30)]) == pytest.approx(2e30)  # its square is not in float32
    assert total_norm([torch.full((4,), 3e4, dtype=torch.float16), torch.ones(1)]) == pytest.approx(6e4, rel=1e-3)
    assert math.isnan(total_norm([torch.tensor([1.0, math.nan]), torch.tensor([math.inf])]))
    assert total_norm([torch.tensor([1.0, -math.inf])]) == math.inf
    assert total_norm(
        [torch.sparse_coo_tensor([[0, 0, 2]], [1.0, 2.0, 4.0], (5,), check_invariants=True)]
    ) == pytest.approx(5.0)


def test_a_limit_warms_up_and_then_counts_from_the_largest_good_value():
    limit = Limit("loss", 10.0)
    for i in range(WARM_UP):
        assert limit.fault(1e9) is None
        limit.accept(1.0 + i / 10)
    assert limit.fault(18.9) is None and limit.fault(-18.9) is None
    fault = limit.fault(19.1)
    assert fault.exploded and fault.largest == 1.9 and "19.1, the largest before it was 1.9" in str(fault)
    assert not limit.fault(math.nan).exploded and str(limit.fault(-math.inf)) == "the loss is -inf"
    assert Limit("loss", None, 1.0, 99).fault(1e30) is None


def test_clipping_keeps_the_direction():
    p, q = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    p.grad, q.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert not clip_gradients([p, q], 5.0, 5.0)
    assert clip_gradients([p, q], 5.0, 1.0)
    torch.testing.assert_close(torch.cat([p.grad, q.grad]), torch.tensor([0.6, 0.0, 0.8]))


def act(rule, **how):
    action = rule.decide(**{"weights_good": True, "bad_input": False, **how})
    rule.bad(action)
    return action


def test_the_rule():
    rule = Rule(tries=2, calm=3)
    assert act(rule) == "skip"  # the first one
    rule.good(), rule.good()
    assert act(rule) == "back"  # before three good steps
    rule.good()
    assert act(rule) == "back"
    rule.good(), rule.good()
    assert rule.backs == 2 and act(rule) == "stop"
    rule = Rule(tries=2, calm=3)
    assert act(rule, weights_good=False) == "back"  # bad weights cannot be skipped
    for _ in range(3):
        rule.good()
    assert rule.backs == 0 and act(rule) == "skip"
    rule = Rule(tries=2)
    assert [act(rule, bad_input=True) for _ in range(3)] == ["skip", "skip", "stop"]
    rule.good()
    assert act(rule, bad_input=True) == "skip" and rule.backs == 0
    assert act(Rule(tries=0), weights_good=False) == "stop"


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_snapshot_restores_an_optimiser_in_every_respect(set_to_none):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).to(torch.bfloat16)
    opt = torch.optim.Adam(model.parameters(), torch.tensor(0.01), capturable=False, foreach=False)
    shot = Snapshot(Parts(model, [opt]))

    def step():
        opt.zero_grad(set_to_none)
        model(torch.randn(5, 3, dtype=torch.bfloat16)).square().mean().backward()
        opt.step()
        return [v.clone() for v in (*model.state_dict().values(), *(s for d in opt.state.values() for s in d.values()))]

    shot.take(7)
    fresh = [p.detach().clone() for p in model.parameters()]
    step()
    shot.restore()
    assert not opt.state and all(torch.equal(v, p) for v, p in zip(fresh, model.parameters(), strict=True))
    step()
    for s in opt.state.values():
        s["exp_avg_sq"] = s["exp_avg_sq"].double()  # a state of a dtype of its own keeps it
    shot.take(8)
    storage = [s["exp_avg"].data_ptr() for s in opt.state.values()]
    once = step()
    opt.param_groups[0]["lr"] = 5.0
    shot.restore()
    assert opt.param_groups[0]["lr"] == 0.01 and shot.iteration == 8
    assert [s["exp_avg"].data_ptr() for s in opt.state.values()] == storage
    again = step()
    assert all(torch.equal(v, w) and v.dtype == w.dtype for v, w in zip(once, again, strict=True))


def test_a_snapshot_must_be_finished_and_fit():
    model = nn.Linear(1, 1)
    opt = torch.optim.SGD(model.parameters(), 0.1)
    shot = Snapshot(Parts(model, [opt]))
    shot.begin(0)
    with pytest.raises(ConfigError, match="nothing to go back to"):
        shot.restore()
    shot.finish()
    model.extra = nn.Parameter(torch.zeros(1))
    with pytest.raises(ConfigError, match="other parameters"):
        shot.restore()


def test_batches_give_the_same_again():
    batches = Batches([10, 11, 12, 13])
    assert len(batches) == 4 and list(batches) == [10, 11, 12, 13]
    seen, state = [], None
    for b in batches:
        seen.append(b)
        if b == 11 and state is None:
            state = batches.state_dict()
        batches.used()
        if len(seen) in (3, 6):
            batches.load_state_dict(state)
    assert seen == [10, 11, 12, 11, 12, 13, 11, 12, 13]
    again = []
    for b in batches:
        again.append(b)
        if len(again) == 3:
            batches.used()
            batches.forget(batches.state_dict()["position"] - 1)
            batches.load_state_dict({"position": 0})  # no longer kept: the oldest that is
    assert again == [10, 11, 12, 12, 13]


def test_a_position_counts_the_batches_that_a_step_is_not_done_with():
    batches = Batches(range(10))
    source = iter(batches)
    assert batches.state_dict() == {"position": 0}
    assert [next(source), next(source)] == [0, 1]
    assert batches.state_dict() == {"position": 0}  # both are in hand
    batches.used()
    assert batches.state_dict() == {"position": 2}
    assert next(source) == 2 and batches.state_dict() == {"position": 2}


def test_broken_names_parameters_and_buffers():
    model = nn.BatchNorm1d(2)
    assert broken(model) == []
    model.running_var[0] = math.inf
    model.bias.data[1] = math.nan
    assert broken(model) == ["bias", "running_var"]
