"""The straight way to the CPU kernels: when it is taken, that it gives what the operator gives, and lent memory."""

import gc
import sys

import pytest
import torch

from throughtime import cells, nn
from throughtime.cells import LSTM
from throughtime.engine import straight as way
from throughtime.engine import unroll
from throughtime.engine.cpu import backend, memory
from throughtime.errors import ShapeError

from .problems import ALL, F64, gradients, problem

RULES = [{}, {"reverse": True}, {"clip": 0.05}, {"truncated": True}]
STRAIGHT = [name for name, make in ALL.items() if not (make().inside or make().matrices)]
STRAIGHT = [name for name in STRAIGHT if type(ALL[name]()).input is cells.Cell.input]


def taken(outputs) -> bool:
    return outputs[0][0].grad_fn.name() == "_StraightBackward"


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("name", STRAIGHT)
def test_bits_of_the_operator(name, rule, monkeypatch):
    torch.manual_seed(0)
    for bias, begin in ((True, True), (False, False)):
        p = problem(name, T=6, B=5, D=3, H=7, bias=bias)
        if not begin:
            p.states = None
        call = {"x": p.x, **p.weights, "units": p.units, "states": p.states, "backend": "cpu", **rule}
        leaves = [p.x, *p.weights.values(), *p.units, *(p.states or ())]

        def run(call=call, leaves=leaves, cell=p.cell):
            sequences, finals = unroll(cell, **call)
            loss = sum((v.sin() * torch.linspace(0.1, 1, v.numel()).view_as(v)).sum() for v in (*sequences, *finals))
            return (sequences, finals), torch.autograd.grad(loss, leaves, materialize_grads=True)

        ours, ours_grads = run()
        assert taken(ours)
        with monkeypatch.context() as m:
            m.setattr(sys.modules["throughtime.engine.unroll"], "straight", lambda *_: None)
            theirs, theirs_grads = run()
        assert not taken(theirs)
        for a, b in zip((*ours[0], *ours[1], *ours_grads), (*theirs[0], *theirs[1], *theirs_grads), strict=True):
            assert torch.equal(a, b)


def test_some_outputs_have_no_gradient():
    p = problem("lstm", T=4, B=2, D=3, H=5)
    for part, k in ((0, 0), (0, 1), (1, 0), (1, 1)):
        outputs, reference = p.unroll(backend="cpu"), p.unroll(backend="reference")
        assert taken(outputs)
        leaves = list(p.leaves().values())
        ours = torch.autograd.grad(outputs[part][k].sin().sum(), leaves, allow_unused=True, materialize_grads=True)
        theirs = torch.autograd.grad(reference[part][k].sin().sum(), leaves, allow_unused=True, materialize_grads=True)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["rnn", "gru", "lstm-peephole"])
def test_second_derivative(name):
    p = problem(name, T=3, B=2, D=2, H=3)
    found = []
    for name in ("cpu", "reference"):
        outputs = p.unroll(backend=name)
        assert taken(outputs) == (name == "cpu")
        first = gradients(p, outputs, create_graph=True)
        norm = sum(g.square().sum() for g in first.values())
        found.append(torch.autograd.grad(norm, list(p.leaves().values()), materialize_grads=True))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_the_unusual_goes_by_the_operator():
    p = problem("lstm")
    assert taken(p.unroll(backend="cpu"))
    assert not taken(p.unroll(backend="torch"))
    assert not taken(p.unroll(backend="cpu", memory="low"))
    p.lengths = torch.tensor([5, 2, 1])
    assert not taken(p.unroll(backend="cpu"))
    assert not taken(problem("users-own").unroll(backend="cpu"))  # a matrix inside its step
    layer, x = nn.LSTM(3, 4), torch.randn(5, 2, 3)
    assert layer(x)[0].grad_fn.name() == "_StraightBackward"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "_StraightBackward" not in str(layer(x)[0].grad_fn.next_functions)
    with torch.no_grad():
        assert layer(x)[0].grad_fn is None
    for p in layer.parameters():
        p.requires_grad_(False)
    assert layer(x)[0].grad_fn is None


def test_what_does_not_fit_is_refused_each_time():
    cell, x, W, U = LSTM(), torch.randn(4, 2, 3), torch.randn(20, 3, requires_grad=True), torch.randn(20, 5)
    for _ in range(2):
        unroll(cell, x, W, U)
        with pytest.raises(ShapeError, match="weight_hh"):
            unroll(cell, x, W, torch.randn(20, 4))
        with pytest.raises(ShapeError, match="initial state c"):
            unroll(cell, x, W, U, states=(torch.zeros(2, 5), torch.zeros(3, 5)))
        with pytest.raises(ShapeError, match="float64"):
            unroll(cell, x.double(), W, U)
        with pytest.raises(ShapeError, match="unit"):
            unroll(cell, x, W, U, units=[torch.zeros(5)])


def test_one_way_for_each_kind_of_call():
    cell, W = LSTM(), torch.randn(20, 3, requires_grad=True)
    way._ways.clear()
    for T in (4, 6, 4, 6, 4):
        unroll(cell, torch.randn(T, 2, 3), W, torch.randn(20, 5))
    assert len(way._ways) == 2


def test_leaves_keep_their_layouts():
    # What a batch-first caller has: time is not the outermost axis in memory.
    layer, x = nn.GRU(3, 4, batch_first=True), torch.randn(2, 5, 3, requires_grad=True)
    other = torch.nn.GRU(3, 4, batch_first=True)
    other.load_state_dict(layer.state_dict())
    ours = torch.autograd.grad(layer(x)[0].sin().sum(), [x, *layer.parameters()])
    theirs = torch.autograd.grad(other(x)[0].sin().sum(), [x, *other.parameters()])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


# --- memory that is lent ---


@pytest.fixture
def lent(monkeypatch):
    monkeypatch.setattr(memory, "MANY", 0)
    made = memory.Lent()
    monkeypatch.setattr(way, "lent", made)
    monkeypatch.setattr(backend, "lent", made)
    return made


def free(lent, weight) -> int:
    return len(lent._free[id(weight)][1]) if id(weight) in lent._free else 0


def test_lent_again_once_nothing_refers_to_it(lent):
    w = torch.zeros(3)
    a = lent.room(w, (4, 6), F64)
    at, view = a.data_ptr(), a[1]
    a.fill_(1.0)
    del a
    assert len(lent) == 0  # the view is still there
    b = lent.room(w, (4, 6), F64)
    b.fill_(2.0)
    assert (view == 1).all()
    del view
    assert len(lent) == 1
    c = lent.room(w, (5, 4), F64)  # not more than it, and not less than half
    assert c.data_ptr() == at
    assert c.shape == (5, 4)
    assert len(lent) == 0
    small = lent.room(w, (2,), F64)
    assert small.data_ptr() != at


def test_given_back_with_the_weight_and_on_release(lent):
    w = torch.zeros(3)
    lent.room(w, (4,), F64)
    assert len(lent) == 1
    lent.release(w)
    assert len(lent) == 0
    lent.room(w, (4,), F64)
    held = lent.room(w, (40,), F64)
    del w
    gc.collect()
    del held
    assert len(lent) == 0


def test_a_training_loop_uses_one_block(lent):
    layer, x = nn.LSTM(3, 4), torch.randn(6, 2, 3)
    weight = layer.weight_ih_l0
    for _ in range(3):
        layer(x)[0].sum().backward()
        assert free(lent, weight) == 1
    with torch.no_grad():
        layer(torch.randn(600, 40, 3))  # not a small call
    assert free(lent, weight) == 0


def test_two_graphs_at_once_and_a_graph_that_is_kept(lent):
    layer = nn.LSTM(3, 4)
    xs = [torch.randn(6, 2, 3) for _ in range(3)]
    alone = [torch.autograd.grad(layer(x)[0].sin().sum(), list(layer.parameters())) for x in xs]
    outputs = [layer(x)[0].sin().sum() for x in xs]
    for y, expected in zip(outputs, alone, strict=True):
        for _ in range(2):
            found = torch.autograd.grad(y, list(layer.parameters()), retain_graph=True)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_who_keeps_a_saved_tensor_in_another_form_keeps_its_memory(lent):
    layer, x = nn.LSTM(3, 4), torch.randn(6, 2, 3)
    expected = torch.autograd.grad(layer(x)[0].sum(), list(layer.parameters()))
    shapes = []

    def pack(t):
        shapes.append(t.shape)
        return len(shapes) - 1, t.detach().reshape(-1)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda p: p[1].view(shapes[p[0]])):
        y = layer(x)[0].sum()
    layer(torch.randn(6, 2, 3))[0].sum().backward()  # which would write over it
    found = torch.autograd.grad(y, list(layer.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
