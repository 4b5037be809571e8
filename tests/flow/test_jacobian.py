"""The full state Jacobian: products, singular values, blocks, and the bound beside what is measured."""

import pytest
import torch

from tests.engine.problems import F64
from tests.flow.runs import linear, of_module, ran
from throughtime import cells, nn
from throughtime.errors import FlowError
from throughtime.flow.bound import largest_slope, recurrent_matrices
from throughtime.flow.jacobian import state_jacobian


def test_products_are_the_derivative_of_a_later_state_by_an_earlier_one():
    r = ran("lstm", T=6, B=2, H=3)
    J = state_jacobian(r)
    first = [s.detach().clone().requires_grad_() for s in r.states]
    from throughtime.engine import unroll

    w = r.weights
    _, last = unroll(r.cell, r.x.detach(), w.weight_ih, w.weight_hh, w.bias_ih, w.bias_hh, states=first)
    for b in range(2):
        rows = [
            torch.cat(torch.autograd.grad(torch.cat(last, -1)[b, n], first, retain_graph=True), -1)[b] for n in range(6)
        ]
        torch.testing.assert_close(J.product(5, -1)[b], torch.stack(rows), rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(J.product(4, 2), J.steps[4] @ J.steps[3])
    torch.testing.assert_close(J.product(3, 3), torch.eye(6, dtype=F64).expand(2, 6, 6))
    torch.testing.assert_close(J.product(5, 1, "c", "h"), J.product(5, 1)[:, 3:, :3])
    torch.testing.assert_close(J.block("h", "c"), J.steps[..., :3, 3:])
    torch.testing.assert_close(J.singular_values(4, 2)[:, 0], torch.linalg.matrix_norm(J.product(4, 2), 2))


def test_reverse_direction_runs_the_other_way():
    J = state_jacobian(ran("gru", T=5, B=1, reverse=True))
    torch.testing.assert_close(J.product(1, 3), J.steps[1] @ J.steps[2])
    torch.testing.assert_close(J.decay[-1], torch.linalg.matrix_norm(J.product(0, 5), 2))
    with pytest.raises(FlowError, match="k must follow t"):
        J.product(3, 1)


def test_decay_counts_from_each_samples_own_last_step():
    r = ran("lstm", T=6, B=2, lengths=[6, 3])
    J = state_jacobian(r)
    assert J.lags == (0, 1, 2, 4, 6)
    torch.testing.assert_close(J.decay[2, 1], torch.linalg.matrix_norm((J.steps[2] @ J.steps[1])[1], 2))
    torch.testing.assert_close(J.decay[2, 0], torch.linalg.matrix_norm((J.steps[5] @ J.steps[4])[0], 2))
    assert J.decay[3, 1].isnan() and not J.decay[:, 0].isnan().any()
    padded = state_jacobian(ran("lstm", T=6, B=2, lengths=[4, 3]))
    assert padded.lags == (0, 1, 2, 4) and "Measured over 4 steps" in str(padded)


@pytest.mark.parametrize("name", ["rnn", "rnn-logistic", "rnn-relu", "rnn-identity", "preactivation"])
def test_no_product_of_a_simple_cell_is_above_its_bound(name):
    for scale in (0.2, 0.6, 1.5):
        J = state_jacobian(ran(name, T=12, B=3, scale=scale))
        bound = J.bound()
        assert (J.decay <= bound[:, None] * (1 + 1e-12)).all()
    torch.testing.assert_close(bound[2] / bound[1], torch.tensor(J.matrices[0].sigma_1 * J.slope, dtype=F64))


def test_bound_is_met_exactly_by_an_orthogonal_linear_network():
    Q = torch.linalg.qr(torch.randn(6, 6, dtype=F64)).Q
    J = state_jacobian(linear(0.9 * Q, T=100))
    torch.testing.assert_close(J.decay, J.bound()[:, None].expand_as(J.decay))
    assert J.rate() == pytest.approx(0.9)


def test_sizes_far_outside_the_range_of_a_product_still_come_out():
    H = 4
    J = state_jacobian(linear(20.0 * torch.eye(H, dtype=F64), T=200))
    torch.testing.assert_close(J.decay[-1], torch.full((2,), 20.0, dtype=F64) ** 200)
    J = state_jacobian(linear(1e-3 * torch.eye(H, dtype=F64), T=150))
    assert (J.decay[-1] == 0).all() and J.rate() == 0  # 1e-450
    J = state_jacobian(linear(1e3 * torch.eye(H, dtype=F64), T=100))
    assert J.decay[-1].isfinite().all()
    J = state_jacobian(linear(1e3 * torch.eye(H, dtype=F64), T=150))
    assert J.decay[-1].isinf().all() and J.rate() == torch.inf  # 1e450
    nilpotent = state_jacobian(linear(torch.diag(torch.ones(H - 1, dtype=F64), 1), T=10))
    assert nilpotent.decay[:, 0].tolist() == [1, 1, 1, 0, 0, 0]  # lags 0, 1, 2, 4, 8, 10


SLOPES = {
    "rnn": 1.0, "rnn-logistic": 0.25, "rnn-relu": 1.0, "rnn-identity": 1.0, "preactivation": 1.0,
    "additive-state": None, "additive-state-feedback": None, "lstm": None, "gru": None, "gru-reset-before": None,
}  # fmt: skip


@pytest.mark.parametrize("name", SLOPES)
def test_slope_is_read_from_the_tape(name):
    assert largest_slope(cells.by_name(name)) == SLOPES[name]
    assert largest_slope(cells.PreActivation("logistic")) == 0.25
    assert largest_slope(cells.PreActivation("identity")) == 1.0


def test_one_cells_slope_that_nobody_named():
    class Wave(cells.Cell):
        gates = ("a",)

        def step(self, z, s, w):
            return torch.sin(z.a)

    class Twice(cells.Cell):
        gates = ("a",)

        def step(self, z, s, w):
            return torch.tanh(2 * z.a)  # slope 2: not in the table, so no bound is claimed

    class Deaf(cells.Cell):
        gates = ("a",)

        def step(self, z, s, w):
            return torch.tanh(s.h)  # no U in front of it

    assert largest_slope(Deaf()) is None
    assert largest_slope(Wave()) == 1.0 and largest_slope(Twice()) is None


def test_torch_default_init_may_explode_by_one_number_and_contracts_by_the_other():
    """U(-1/sqrt(H), 1/sqrt(H)): variance 1/(3H), so radius -> 1/sqrt(3) = 0.577 and sigma_1 -> 2/sqrt(3) = 1.155.

    At H = 1000 sigma_1 scatters by about H^(-2/3) = 1 % below its limit and the radius by a few per cent above (the
    outermost of 1000 eigenvalues; Rider 2003): hence 0.02 and 0.03.
    """
    m = torch.nn.RNN(1, 1000)
    r = of_module(nn.convert(m), torch.zeros(1, 1, 1))
    (U,) = recurrent_matrices(r)
    assert U.gate == "h"
    assert U.sigma_1 == pytest.approx(1.1547, abs=0.02)
    assert U.spectral_radius == pytest.approx(0.5774, abs=0.03)


def test_gates_blocks_one_by_one():
    r = ran("gru", H=4)
    found = recurrent_matrices(r)
    assert [m.gate for m in found] == ["r", "u", "n"]
    for m, block in zip(found, r.weights.weight_hh.detach().split(4), strict=True):
        assert m.sigma_1 == pytest.approx(torch.linalg.svdvals(block)[0].item())
        assert m.spectral_radius == pytest.approx(torch.linalg.eigvals(block).abs().max().item())
    assert all(m.spectral_radius is None for m in recurrent_matrices(ran("lstm-projected")))
    assert "spectral radius not square" in str(recurrent_matrices(ran("lstm-projected"))[0])
    assert recurrent_matrices(ran("additive-state")) == ()


def test_gru_at_rest():
    """J = I/2 + W_hn/4 at h = 0, x = 0, without biases."""
    module = nn.GRU(3, 8, bias=False).double()
    J = state_jacobian(of_module(module, torch.zeros(5, 2, 3)))
    want = torch.eye(8, dtype=F64) / 2 + module.weight_hh_l0.detach()[16:] / 4
    torch.testing.assert_close(J.steps, want.expand(5, 2, 8, 8), rtol=1e-12, atol=1e-15)


def test_additive_state_is_the_identity():
    J = state_jacobian(ran("additive-state", T=7))
    torch.testing.assert_close(J.steps, torch.eye(5, dtype=F64).expand_as(J.steps), rtol=0, atol=0)
    assert J.bound() is None and J.rate() == 1
    assert "neither fall nor grow" in str(J)


def test_prints_the_numbers_side_by_side():
    module = nn.RNN(3, 64).double()
    text = str(state_jacobian(of_module(module, torch.randn(20, 4, 3))))
    assert "State Jacobian over 20 steps, 4 samples (Simple (tanh), layer 0): h 64" in text
    assert "U[h]: spectral radius 0.6" in text or "U[h]: spectral radius 0.5" in text
    assert "bound" in text and "the products fall, by a factor of" in text
    assert "may explode; it is an upper limit, not what happens" in text


def test_refusals():
    r = ran("lstm", T=4, B=3)
    J = state_jacobian(r, samples=2)
    assert J.steps.shape == (4, 2, 10, 10)
    for call, message in {
        (lambda: state_jacobian(r, samples=4)): r"samples must lie in 1..3.*came 4",
        (lambda: J.product(4, 0)): "the steps are 0..3, -1 the initial state, and k must precede t",
        (lambda: J.product(1, 2)): "must precede",
        (lambda: J.block("h", "m")): "'m' is not a state of LSTM; its states are h, c",
    }.items():
        with pytest.raises(FlowError, match=message):
            call()


def test_too_large_is_refused_before_anything_is_taken(monkeypatch):
    monkeypatch.setattr("throughtime.flow.jacobian.ROOM", 1000)
    with pytest.raises(FlowError, match=r"would take .* GiB; ask for fewer samples="):
        state_jacobian(ran("lstm", T=4, B=3))
