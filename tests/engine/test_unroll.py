"""unroll against the reference loop: values, every gradient by name, second derivatives, odd sizes."""

import pytest
import torch

from tests.engine.problems import ALL, F64, assert_same, gradients, loss_of, problem
from throughtime import cells
from throughtime.engine import unroll
from throughtime.errors import BackendError, CellError, ShapeError

SETTINGS = {
    "plain": {},
    "reverse": {"reverse": True},
    "lengths": {"lengths": [5, 2, 4]},
    "lengths, reverse": {"lengths": [1, 5, 3], "reverse": True},
    "no bias": {"bias": False},
    "one of all": {"T": 1, "B": 1, "D": 1, "H": 1, "P": 1},
    "odd": {"T": 7, "B": 1, "D": 2, "H": 3},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ALL)
def test_equals_the_reference(name, setting):
    p = problem(name, **SETTINGS[setting])
    ours, theirs = p.unroll(backend="torch"), p.unroll(backend="reference")
    for a, b in zip([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert_same(gradients(p, ours), gradients(p, theirs))


@pytest.mark.parametrize("name", ALL)
def test_second_derivative_equals_the_reference(name):
    p = problem(name, T=4, lengths=[4, 2, 3])
    seconds = []
    for backend in ("torch", "reference"):
        first = gradients(p, p.unroll(backend=backend), create_graph=True)
        seconds.append(gradients(p, [list(first.values())]))
    assert_same(*seconds, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_gradcheck(name):
    p = problem(name, T=3, B=2, D=2, H=3, P=2 if name == "lstm-projected" else None, lengths=[3, 2])
    named = p.leaves()

    def run(*leaves):
        p.x = leaves[0]
        p.weights = dict(zip(p.weights, leaves[1:], strict=False))
        n = 1 + len(p.weights)
        p.units = list(leaves[n : n + len(p.units)])
        n += len(p.units)
        p.matrices = list(leaves[n : n + len(p.matrices)])
        p.states = list(leaves[n + len(p.matrices) :])
        return [v for part in p.unroll() for v in part]

    assert torch.autograd.gradcheck(run, tuple(named.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, tuple(named.values()), fast_mode=True)


def test_third_derivative():
    p = problem("lstm", T=3, B=1, D=1, H=2)
    thirds = []
    for backend in ("torch", "reference"):
        first = gradients(p, p.unroll(backend=backend), create_graph=True)
        second = gradients(p, [list(first.values())], create_graph=True)
        thirds.append(gradients(p, [list(second.values())]))
    assert_same(*thirds, atol=1e-8)


def test_double_backward_does_not_follow_paths_outside():
    # x depends on the same weight that the cell uses: that path belongs to autograd, not to the operator.
    p = problem("rnn", D=5)
    seconds = []
    for backend in ("torch", "reference"):
        x = p.x @ p.weights["weight_hh"]
        out = unroll(p.cell, x, **p.weights, states=p.states, backend=backend)
        first = gradients(p, out, create_graph=True)
        seconds.append(gradients(p, [list(first.values())]))
    assert_same(*seconds, atol=1e-9)


def test_zero_beyond_the_length_and_final_state_at_the_length():
    p = problem("lstm", lengths=[5, 2, 4])
    (h, _), (last, _) = p.unroll()
    assert torch.equal(h[2:, 1], torch.zeros_like(h[2:, 1]))
    for b, n in enumerate([5, 2, 4]):
        assert torch.equal(last[b], h[n - 1, b])
        alone = unroll(p.cell, p.x[:n, b : b + 1], **p.weights, states=[s[b : b + 1] for s in p.states])
        torch.testing.assert_close(alone[1][0][0], last[b], rtol=1e-13, atol=1e-13)


def test_padding_may_hold_nan():
    clean = problem("gru", lengths=[5, 2, 4])
    want = gradients(clean, clean.unroll())
    with torch.no_grad():
        clean.x[2:, 1] = float("nan")
    assert_same(gradients(clean, clean.unroll()), want)


def test_states_default_to_zero():
    p = problem("lstm")
    zeros = [torch.zeros_like(s) for s in p.states]
    a = unroll(p.cell, p.x, **p.weights)
    b = unroll(p.cell, p.x, **p.weights, states=zeros)
    assert all(torch.equal(u, v) for u, v in zip([*a[0], *a[1]], [*b[0], *b[1]], strict=True))


def test_without_grad_the_numbers_are_the_same():
    p = problem("gru")
    with torch.no_grad():
        quiet = p.unroll()
    assert torch.equal(quiet[0][0], p.unroll()[0][0])
    assert not quiet[0][0].requires_grad


def test_a_constant_x_needs_no_gradient():
    p = problem("lstm")
    want = gradients(p, p.unroll())["weight_hh"]
    p.x.requires_grad_(False)
    got = torch.autograd.grad(loss_of(p.unroll()), p.weights["weight_hh"])[0]
    assert torch.equal(got, want)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_one_output_of_many_may_be_used(backend):
    p = problem("lstm")
    (h, _), _ = p.unroll(backend=backend)
    grad = torch.autograd.grad(h[-1].sum(), p.x)[0]
    assert grad.abs().amin(dim=(1, 2)).gt(0).all()  # every step back to the first gets its share


WRONG = {
    "x must be": lambda p: setattr(p, "x", p.x[0]),
    "no time steps": lambda p: setattr(p, "x", p.x[:0]),
    "weight_ih must be": lambda p: p.weights.update(weight_ih=p.weights["weight_ih"][:-1]),
    "weight_hh must be": lambda p: p.weights.update(weight_hh=p.weights["weight_hh"][:, :-1]),
    "needs weight_hh": lambda p: p.weights.pop("weight_hh"),
    "bias_hh must be": lambda p: p.weights.update(bias_hh=p.weights["bias_hh"][1:]),
    "unit weight p_i must be": lambda p: p.units.__setitem__(0, p.units[0][1:]),
    "takes 3 unit": lambda p: p.units.pop(),
    "initial state c must be": lambda p: p.states.__setitem__(1, p.states[1][:, 1:]),
    "x is torch.float32": lambda p: setattr(p, "x", p.x.float()),
    "lengths must be": lambda p: setattr(p, "lengths", torch.tensor([1.0, 2.0, 3.0])),
    "lengths must lie in 1..5": lambda p: setattr(p, "lengths", torch.tensor([0, 2, 9])),
    "clip must be a positive number": lambda p: p.options.update(clip=0.0),
    "clip must be a positive": lambda p: p.options.update(clip=float("nan")),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_does_not_fit_is_named(message):
    p = problem("lstm-peephole")
    WRONG[message](p)
    with pytest.raises(ShapeError, match=message):
        p.unroll()


def test_backends_that_cannot_say_so():
    p = problem("lstm")
    with pytest.raises(BackendError, match="unknown backend 'fpga'"):
        p.unroll(backend="fpga")
    with pytest.raises(BackendError, match="training rules"):
        p.unroll(backend="reference", clip=1.0)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_transforms_of_torch_func_are_refused_with_the_way_out(backend):
    p = problem("lstm")

    def loss(x, backend):
        p.x = x
        return p.unroll(backend=backend)[0][0].sum()

    x = p.x
    found = torch.func.grad(loss)(x, "reference")
    torch.testing.assert_close(found, torch.autograd.grad(loss(x, backend), x)[0])
    for transform in (torch.func.grad, torch.func.jacrev):
        with pytest.raises(BackendError, match='choose backend="reference"'):
            transform(loss)(x, backend)


def test_weights_of_a_cell_without_recurrence():
    p = problem("additive-state")
    with pytest.raises(ShapeError, match="no recurrent weights"):
        unroll(p.cell, p.x, p.weights["weight_ih"], torch.ones(5, 5, dtype=F64))


def test_a_step_that_cannot_be_traced_runs_on_the_reference():
    class Odd(cells.Cell):
        gates = ("h",)

        def step(self, z, s, w):
            return torch.special.bessel_j0(z.h)

    x, W, U = torch.randn(3, 2, 4), torch.randn(5, 4), torch.randn(5, 5)
    with pytest.raises(CellError, match=r'bessel_j0.*backend="reference"'):
        unroll(Odd(), x, W, U)
    (h,), _ = unroll(Odd(), x, W, U, backend="reference")
    torch.testing.assert_close(h[0], torch.special.bessel_j0(x[0] @ W.T))
