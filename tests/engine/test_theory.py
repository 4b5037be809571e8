"""What theory says of the gradient through time: the bound over random networks, closed forms, the carousel."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from throughtime import cells
from throughtime.engine import unroll

F64 = torch.float64
SLOPE = {"tanh": 1.0, "logistic": 0.25, "relu": 1.0, "identity": 1.0}


def delta(cell, x, W, U, loss_step):
    """dL_t/dz_k for all k [T, H], with L_t = <v, h_t>: a zero that is added to each net input takes the gradient."""
    H = U.shape[0]
    probe = torch.zeros(x.shape[0], 1, H, dtype=F64, requires_grad=True)
    # x W^T + probe = [x, probe] [W, I]^T
    wide, both = torch.cat([W, torch.eye(H, dtype=F64)], 1), torch.cat([x, probe], -1)
    (h,), _ = unroll(cell, both, wide, U)
    v = torch.linspace(-1, 1, H, dtype=F64) + 0.1
    return torch.autograd.grad((h[loss_step, 0] * v).sum(), probe)[0][:, 0]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    f=st.sampled_from(sorted(SLOPE)), H=st.integers(1, 9), T=st.integers(2, 12),
    gain=st.floats(0.05, 4.0), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_bound_holds(f, H, T, gain, seed):
    """||delta_{t,k}|| <= (g_u g_f)^(t-k) ||delta_{t,t}|| (Hochreiter 1991; Bengio 1994; Pascanu 2013)."""
    gen = torch.Generator().manual_seed(seed)
    U = torch.randn(H, H, generator=gen, dtype=F64) * gain / math.sqrt(H)
    x, W = torch.randn(T, 1, 2, generator=gen, dtype=F64), torch.randn(H, 2, generator=gen, dtype=F64)
    size = delta(cells.Simple(f), x, W, U, T - 1).norm(dim=-1)
    product = SLOPE[f] * torch.linalg.matrix_norm(U, 2)
    lags = torch.arange(T - 1, -1, -1, dtype=F64)
    assert (size <= product**lags * size[-1] * (1 + 1e-9)).all()


def test_linear_network_meets_the_closed_form():
    """delta_{t,k} = (U^T)^(t-k) delta_{t,t} exactly."""
    H, T = 6, 15
    U, W, x = torch.randn(H, H, dtype=F64) * 0.4, torch.randn(H, 3, dtype=F64), torch.randn(T, 1, 3, dtype=F64)
    got = delta(cells.Simple("identity"), x, W, U, T - 1)
    last = torch.linspace(-1, 1, H, dtype=F64) + 0.1
    for k in range(T):
        want = torch.linalg.matrix_power(U.T, T - 1 - k) @ last
        torch.testing.assert_close(got[k], want, rtol=1e-12, atol=1e-14)


def test_linear_states_meet_the_closed_form():
    """h_t = sum_k U^(t-k) W x_k."""
    H, T = 4, 9
    U, W, x = torch.randn(H, H, dtype=F64) * 0.5, torch.randn(H, 2, dtype=F64), torch.randn(T, 1, 2, dtype=F64)
    (h,), _ = unroll(cells.Simple("identity"), x, W, U)
    want = sum(torch.linalg.matrix_power(U, T - 1 - k) @ W @ x[k, 0] for k in range(T))
    torch.testing.assert_close(h[-1, 0], want, rtol=1e-12, atol=1e-14)


def test_preactivation_is_the_simple_network_in_the_other_convention():
    H, T = 5, 8
    W, U, b, x = (torch.randn(*s, dtype=F64) for s in ((H, 3), (H, H), (H,), (T, 2, 3)))
    s0 = torch.randn(2, H, dtype=F64)
    (s,), _ = unroll(cells.PreActivation("tanh"), x, W, U, b, states=[s0])
    (h,), _ = unroll(cells.Simple("tanh"), x, W, U, b, states=[torch.tanh(s0)])
    torch.testing.assert_close(torch.tanh(s), h, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["additive-state", "additive-memory"])
def test_additive_states_do_not_vanish(name):
    cell, T = cells.by_name(name), 200
    x, W = torch.randn(T, 1, 3, dtype=F64), torch.randn(4, 3, dtype=F64)
    first = [torch.zeros(1, 4, dtype=F64).requires_grad_() for _ in cell.states]
    _, last = unroll(cell, x, W, states=first)
    grad = torch.autograd.grad(last[-1].sum(), first[-1])[0]
    assert torch.equal(grad, torch.ones_like(grad))


def test_memory_without_bound_saturates_what_it_shows():
    x = torch.ones(50, 1, 1, dtype=F64)
    (h, c), _ = unroll(cells.AdditiveMemory("identity"), x, torch.ones(1, 1, dtype=F64))
    torch.testing.assert_close(c[:, 0, 0], torch.arange(1, 51, dtype=F64))
    assert h[-1, 0, 0] == 1 and 0.76 < h[0, 0, 0] < 0.77


def test_tuned_network_keeps_its_gradient():
    """U = I and ReLU: the gradient stays as it is while the units are positive (Le 2015)."""
    H, T = 5, 60
    x, W = torch.rand(T, 1, H, dtype=F64), torch.eye(H, dtype=F64)
    size = delta(cells.Simple("relu"), x, W, torch.eye(H, dtype=F64), T - 1)
    torch.testing.assert_close(size, size[-1].expand(T, H), rtol=0, atol=0)


def test_forget_gate_sets_the_memory_time():
    """With f fixed, dc_T/dc_0 along the carousel is f^T: half-life ln 2 / -ln f steps."""
    H, T = 3, 120
    bias = torch.zeros(4 * H, dtype=F64)
    bias[H : 2 * H] = 5.0
    c0 = torch.zeros(2, H, dtype=F64).requires_grad_()
    zero = torch.zeros(4 * H, H, dtype=F64)
    _, (_, c) = unroll(
        cells.LSTM(), torch.zeros(T, 2, H, dtype=F64), zero, zero, bias, states=[torch.zeros(2, H, dtype=F64), c0]
    )
    grad = torch.autograd.grad(c.sum(), c0)[0]
    torch.testing.assert_close(grad, torch.full_like(grad, torch.sigmoid(torch.tensor(5.0, dtype=F64)).item() ** T))


def test_gru_at_rest():
    """J = I/2 + W_hn/4 at h = 0, x = 0, without biases."""
    H = 6
    U = torch.randn(3 * H, H, dtype=F64)
    h0 = torch.zeros(1, H, dtype=F64)

    def step(h):
        return unroll(cells.GRU(), torch.zeros(1, 1, 2, dtype=F64), torch.zeros(3 * H, 2, dtype=F64), U, states=[h])[1][
            0
        ]

    J = torch.autograd.functional.jacobian(step, h0)[0, :, 0]
    torch.testing.assert_close(J, torch.eye(H, dtype=F64) / 2 + U[2 * H :] / 4, rtol=1e-12, atol=1e-13)
