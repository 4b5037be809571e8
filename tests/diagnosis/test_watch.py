"""watch(): a training that is watched computes what it does alone, and what is told of it is right."""

from __future__ import annotations

import copy
import io
import math
import random
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor, nn

import throughtime as tt
from tests.diagnosis.watched import Net, Step, stepwise, train, whole
from throughtime.diagnosis import read_history, taps
from throughtime.errors import CheckpointError, ConfigError, FlowError
from throughtime.flow import GradientFlow, capture


def generators() -> tuple[Tensor, object, object]:
    return torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()


@pytest.mark.parametrize("budget", [0.0, 0.02, math.inf])
@pytest.mark.parametrize(
    ("make", "loss_of"),
    [
        (Net, whole),
        (lambda: Net(nn.GRU), whole),
        (lambda: tt.convert(Net()), whole),
        (Step, stepwise),
        (lambda: Net().double(), lambda m, x: whole(m, x.double())),
        (lambda: Net(), lambda m, x: whole(m, x) + 0.1 * whole(m, x[:3])),
    ],
    ids=["lstm", "gru", "ours", "own cell", "float64", "two calls"],
)
def test_not_one_bit_is_another(make, loss_of, budget):
    torch.manual_seed(1)
    first = make()
    alone, watched = copy.deepcopy(first), copy.deepcopy(first)
    torch.manual_seed(2)
    _, losses = train(alone, loss_of=loss_of)
    then = generators()
    torch.manual_seed(2)
    w, seen = train(watched, loss_of=loss_of, watching=tt.watch(watched, budget))
    assert losses == seen and w.history and w.steps == 4
    for (name, a), b in zip(alone.state_dict().items(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for a, b in zip(alone.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad) and a._version == b._version
    if isinstance(alone, Step):
        assert torch.equal(alone.last, watched.last)
    now = generators()
    assert torch.equal(then[0], now[0]) and then[1:] == now[1:]


def test_all_is_put_back():
    model, backward, call = Net(), torch.autograd.backward, nn.Module.__call__
    before = {n: dict(vars(m)) for n, m in model.named_modules()}
    train(model, watching=tt.watch(model, math.inf))
    assert torch.autograd.backward is backward and nn.Module.__call__ is call
    for n, m in model.named_modules():
        assert not m._forward_hooks and not m._forward_pre_hooks and not m._backward_hooks
        assert vars(m).keys() == before[n].keys()
    assert not taps._listeners and not taps._to_calls


def test_a_model_saved_between_steps_is_the_same_file():
    first = Net()
    files: list[list[bytes]] = []
    for watched in (True, False):
        model, kept = copy.deepcopy(first), []

        def save(n, model=model, kept=kept):
            torch.save(model, file := io.BytesIO())
            kept.append(file.getvalue())

        torch.manual_seed(5)
        train(model, 3, watching=tt.watch(model, math.inf) if watched else None, after=save)
        files.append(kept)
    assert all(a == b for a, b in zip(*files, strict=True))


def test_a_record_is_what_capture_measures():
    torch.manual_seed(3)
    model = Net()
    twin = copy.deepcopy(model)
    torch.manual_seed(4)
    w, losses = train(model, 1, watching=tt.watch(model))
    torch.manual_seed(4)
    x = torch.randn(7, 4, 3)
    with capture(twin) as captured:
        whole(twin, x).backward()
    (record,) = w.history
    assert record.step == 1 and record.loss == losses[0]
    assert record.grad_norms == pytest.approx({n: p.grad.norm().item() for n, p in twin.named_parameters()})
    assert record.grad_norm == pytest.approx(math.sqrt(sum(v * v for v in record.grad_norms.values())))
    assert record.updates.keys() == record.grad_norms.keys()
    for name, before in twin.named_parameters():
        step = model.get_parameter(name).detach() - before.detach()
        assert record.updates[name] == pytest.approx((step.norm() / before.norm()).item(), rel=1e-4)
    assert [(s.layer, s.cell, s.steps, s.estimated) for s in record.recurrences] == [
        (0, "LSTM", 7, None),
        (1, "LSTM", 7, None),
    ]
    for seen, flow in zip(record.recurrences, captured.flows(), strict=True):
        assert seen.horizon == flow.horizon() and seen.half_life == pytest.approx(flow.half_life(), rel=1e-5)
        assert seen.sizes == pytest.approx(flow.profile()[list(seen.lags)].tolist(), rel=1e-5), "float32 is enough"


def test_each_record_is_of_its_own_step():
    model = Net()
    w, losses = train(model, 5, watching=tt.watch(model, math.inf))
    assert [r.step for r in w.history] == [1, 2, 3, 4, 5] and [r.loss for r in w.history] == losses
    assert all(r.updates and r.spent > 0 for r in w.history)
    assert [r.seconds for r in w.history] == sorted(r.seconds for r in w.history)
    assert f"Watch of Net: 5 training steps, 5 measured, {100 * w.cost:.2g} % of training time" in str(w)


def test_its_own_diagnosis():
    model = Net()
    w, _ = train(model, 3, watching=tt.watch(model, math.inf))
    found = w.diagnosis()
    assert [m.steps for m in found.measured] == [7, 7] and found.updates.measured
    assert [u.ratio for u in found.updates.updates] == pytest.approx(list(w.history[-1].updates.values()))
    assert w.diagnosis(clip=1e-9).has("clip-threshold") and not found.has("clip-threshold")
    assert w.diagnosis(data=tt.diagnosis.dependence(torch.randn(40, 7, 1), torch.randn(40, 7, 1), range(7))).data


def test_what_is_large_is_estimated_from_some_sequences_and_losses_and_says_so(monkeypatch):
    monkeypatch.setattr("throughtime.diagnosis.watch_step.WORK", 1.47e5)
    torch.manual_seed(6)
    model, T = Net(layers=1), 40
    twin = copy.deepcopy(model)
    torch.manual_seed(7)
    w, _ = train(model, 2, watching=tt.watch(model, math.inf), length=T)
    first, second = (r.recurrences[0] for r in w.history)
    assert first.estimated == second.estimated == "17 of 40 loss steps and 2 of 4 sequences"
    # The same from the exact map of those sequences, with the rows of those losses.
    torch.manual_seed(7)
    x = torch.randn(T, 4, 3)[:, [0, 2]]
    with capture(twin) as captured:
        whole(twin, x).backward()
    maps, rows = captured.flow().maps, sorted({round(k * (T - 1) / 16) for k in range(17)})
    some = {n: torch.zeros_like(m).index_copy(0, torch.tensor(rows), m[rows]) for n, m in maps.items()}
    assert first.sizes == pytest.approx(GradientFlow(some, "LSTM").profile()[list(first.lags)].tolist(), rel=1e-6)
    assert first.lags == (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 39)


def test_gradients_gathered_from_several_backward_passes():
    model, optimiser = Net(), None
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    with tt.watch(model, math.inf) as w:
        for _ in range(2):
            optimiser.zero_grad()
            for _ in range(3):
                whole(model, torch.randn(5, 2, 3)).backward()
            optimiser.step()
    assert w.steps == 6 and [r.step for r in w.history] == [1, 2, 3, 4, 5, 6]
    assert [bool(r.updates) for r in w.history] == [False, False, True] * 2


def test_an_evaluation_is_not_a_training_step():
    model = Net()
    with tt.watch(model, math.inf) as w:
        for _ in range(2):
            model.eval()
            with torch.no_grad():
                whole(model, torch.randn(30, 2, 3))
            whole(model, torch.randn(30, 2, 3))  # with gradients left on
            model.train()
            whole(model, torch.randn(5, 2, 3)).backward()
            whole(model, torch.randn(30, 2, 3))
    assert [r.recurrences[0].steps for r in w.history] == [5, 5]


def test_a_long_evaluation_with_gradients_left_on_is_let_go_of():
    model = Net()
    with tt.watch(model, math.inf) as w:
        for _ in range(70):
            whole(model, torch.randn(2, 2, 3))
        assert w._measuring.overfull and not w._measuring._recorder.calls
        for _ in range(3):
            whole(model, torch.randn(2, 2, 3)).backward()
    assert any("an evaluation belongs under torch.no_grad()" in n for n in w.notes) and w.history


def test_a_model_that_trains_in_eval_mode():
    model = Net().eval()
    w, _ = train(model, 4, watching=tt.watch(model, math.inf))
    assert w.steps == 4 and [r.step for r in w.history] == [2, 3, 4]


def test_several_models():
    class Encoder(Net):
        pass

    one, two = Encoder(), Net()
    optimiser = torch.optim.SGD([*one.parameters(), *two.parameters()], 0.1)
    with tt.watch([one, two], math.inf) as w:
        for _ in range(2):
            optimiser.zero_grad()
            x = torch.randn(4, 2, 3)
            (one(x) - two(x)).square().mean().backward()
            optimiser.step()
    assert [s.name for s in w.history[0].recurrences] == ["Encoder.rnn", "Encoder.rnn", "Net.rnn", "Net.rnn"]
    assert w.name == "Encoder and Net" and len(w.history) == 2


def test_twins_are_told_apart():
    class My_Net(Net):
        pass

    with tt.watch([My_Net(), My_Net(), My_Net()]) as w:
        pass
    assert w.name == "My_Net and My_Net_2 and My_Net_3"


class Mine(Exception):
    pass


@pytest.mark.parametrize("error", [Mine, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("where", ["loop", "forward", "backward"])
def test_the_users_own_exception_passes_through(error, where):
    model, mine = Net(), error("mine")

    def fails(*_):
        raise mine

    def loss_of(m, x):
        loss = whole(m, x)
        if where == "backward" and rounds:
            loss.register_hook(fails)
        return loss

    rounds = []
    if where == "forward":
        model.out.register_forward_hook(lambda *a: fails() if rounds else None)

    def after(n):
        rounds.append(n)
        if where == "loop":
            fails()

    w = tt.watch(model, math.inf)
    with pytest.raises(error) as caught:
        train(model, 3, loss_of, w, after)
    assert caught.value is mine and mine.__cause__ is None
    assert not model.rnn._forward_hooks and not taps._listeners


def test_what_was_seen_until_an_error_is_there(tmp_path):
    model = Net()
    with pytest.raises(Mine), tt.watch(model, math.inf, tmp_path / "w.jsonl") as w:
        train(model, 2)
        raise Mine
    assert len(w.history) == 2 and read_history(tmp_path / "w.jsonl").records == tuple(w.history)
    assert w.diagnosis().measured


def test_an_error_caught_by_the_loop_leaves_the_next_step_measured():
    model = Net()
    with tt.watch(model, math.inf) as w:
        for n in range(3):
            loss = whole(model, torch.randn(5, 2, 3))
            if n == 1:
                handle = loss.register_hook(lambda g: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    loss.backward()
                handle.remove()
            else:
                loss.backward()
    assert len(w.history) == 2 and w.steps == 2


@pytest.mark.parametrize(
    ("model", "loss_of", "says"),
    [
        (nn.Linear(3, 2), whole, "no recurrence was seen"),
        (torch.compile(Net(), backend="eager"), whole, "compiled by torch.compile"),
        (nn.DataParallel(nn.Linear(3, 2)), whole, "runs copies of the model"),
    ],
    ids=["no recurrence", "compiled", "data parallel"],
)
def test_what_cannot_be_seen_is_told(model, loss_of, says):
    with tt.watch(model) as w:
        for _ in range(2):
            loss_of(model, torch.randn(5, 2, 3)).backward()
    assert any(says in n for n in w.notes), w.notes
    with pytest.raises(FlowError, match="nothing was measured: "):
        w.diagnosis()


def test_a_forward_that_cannot_be_seen_is_told():
    model = Net()
    with tt.watch(model) as w:
        for _ in range(5):
            nn.functional.linear(torch.randn(2, 6), model.out.weight).sum().backward()
    assert "3 training steps went by without a forward pass of Net" in w.notes[0] and w.steps == 3


def test_a_loss_that_does_not_depend_on_the_layer():
    model = Net()
    with tt.watch(model, math.inf) as w:
        for _ in range(2):
            y = model(torch.randn(5, 2, 3))
            (y.detach().sum() + model.out.bias.sum()).backward()
    assert "no gradient" in str(w) and w.steps == 2


def test_nan_is_told_and_training_goes_on():
    model = Net(layers=1)
    with tt.watch(model, math.inf) as w:
        x = torch.randn(5, 2, 3)
        whole(model, x).backward()
        x[2, 0, 0] = math.nan
        whole(model, x).backward()
    assert w.history[0].recurrences[0].problem is None
    assert "NaN or infinite, first at step 2" in w.history[1].recurrences[0].problem
    assert math.isnan(w.history[1].loss) and w.diagnosis().case == "broken"
    assert str(w.history[1].recurrences[0]).startswith("rnn, layer 0: ") and "(," not in str(w), "no cell is known"


def test_one_step_one_sequence_one_unit():
    for T, B in ((1, 1), (1, 3), (4, 1)):
        model = nn.Sequential(nn.LSTM(3, 1))
        with tt.watch(model, math.inf) as w:
            model(torch.randn(T, B, 3))[0].sum().backward()
        assert w.history[0].recurrences[0].steps == T and not w.notes, w.notes


def test_an_error_of_ours_ends_the_watch_and_not_the_training(monkeypatch):
    def broken(self, turn, work):
        raise OSError("ours")

    monkeypatch.setattr("throughtime.diagnosis.watch_step.Pending.look", broken)
    model = Net()
    w, losses = train(model, 3, watching=tt.watch(model, math.inf))
    assert len(losses) == 3 and "watching went wrong and ended (OSError: ours); the training did not" in w.notes
    assert not model.rnn._forward_hooks and not taps._listeners


def test_watches_may_stand_side_by_side_and_inside_one_another():
    model, other = Net(), Net()
    with tt.watch(model, math.inf) as outer, tt.watch(other, math.inf) as inner:
        for m in (model, other, model):
            whole(m, torch.randn(3, 2, 3)).backward()
    assert (outer.steps, inner.steps) == (2, 1) and (len(outer.history), len(inner.history)) == (2, 1)


def test_second_derivatives_and_checkpointing():
    model = Net()
    with tt.watch(model, math.inf) as w:
        loss = whole(model, torch.randn(3, 2, 3))
        grads = torch.autograd.grad(loss, model.parameters(), create_graph=True)  # no training step by itself
        (loss + sum(g.square().sum() for g in grads)).backward()
        x = torch.randn(3, 2, 3, requires_grad=True)
        torch.utils.checkpoint.checkpoint(model, x, use_reentrant=True).sum().backward()
        torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False).sum().backward()
    assert w.steps == 3


@pytest.mark.parametrize("model", [None, [], [nn.Linear(1, 1), 3], "Net"])
def test_what_is_no_model(model, tmp_path):
    with pytest.raises(FlowError, match=r"expected a torch\.nn\.Module"), tt.watch(model, path=tmp_path / "w"):
        pass
    assert not (tmp_path / "w").exists() and not taps._listeners


@pytest.mark.parametrize("budget", [-0.1, math.nan, True, "2%", None])
def test_what_is_no_budget(budget):
    with pytest.raises(ConfigError, match="the budget is a share of training time"), tt.watch(Net(), budget):
        pass


def test_a_history_is_never_written_over(tmp_path: Path):
    (tmp_path / "w.jsonl").write_text("mine")
    with pytest.raises(CheckpointError, match="is already there"), tt.watch(Net(), path=tmp_path / "w.jsonl"):
        pass
    assert (tmp_path / "w.jsonl").read_text() == "mine" and not taps._listeners
    with pytest.raises(CheckpointError, match="cannot write"), tt.watch(Net(), path=tmp_path / "w.jsonl" / "x"):
        pass
