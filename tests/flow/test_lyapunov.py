"""Lyapunov exponents against closed forms; and what an LSTM's memory becomes when c is held constant."""

import math

import pytest
import torch

from tests.engine.problems import F64
from tests.flow.runs import linear, of_module, ran
from throughtime import nn
from throughtime.errors import FlowError
from throughtime.flow.jacobian import state_jacobian
from throughtime.flow.lyapunov import LyapunovSpectrum, lyapunov_of_product, lyapunov_spectrum


def test_products_of_fresh_gaussian_matrices():
    """1/2 [ln(2 g^2 / N) + psi((N - i + 1) / 2)] (Newman 1986). Every step is an independent draw, so the standard
    error over the batch is the true one; 4.5 of them are exceeded once in 20,000 tests of 8 exponents."""
    N, g, T, B = 8, 1.3, 250, 60
    gen = torch.Generator().manual_seed(1)
    M = torch.randn(T, B, N, N, generator=gen, dtype=F64) * g / math.sqrt(N)
    found = lyapunov_of_product(M)
    i = torch.arange(1, N + 1, dtype=F64)
    want = 0.5 * (math.log(2 * g**2 / N) + torch.digamma((N - i + 1) / 2))
    assert (found.standard_error < 0.02).all()
    assert ((found.exponents - want).abs() < 4.5 * found.standard_error).all()
    torch.testing.assert_close(lyapunov_of_product(M, 3).exponents, found.exponents[:3])


def test_fixed_matrix_gives_the_logarithms_of_its_eigenvalues():
    """h' = U h: log |eig U|. Eigenvalues drawn apart, so that the directions settle in the warm-up."""
    sizes = torch.tensor([1.2, 0.9, 0.6, 0.4, 0.2], dtype=F64)
    V = torch.randn(5, 5, dtype=F64)
    U = V @ torch.diag(sizes * torch.tensor([1.0, -1, 1, 1, -1], dtype=F64)) @ torch.linalg.inv(V)
    found = lyapunov_spectrum(linear(U, T=300), warmup=100)
    torch.testing.assert_close(found.exponents, sizes.log(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.exponents, torch.linalg.eigvals(U).abs().log().sort(descending=True).values)
    torch.testing.assert_close(lyapunov_spectrum(linear(U, T=300), 2, warmup=100).exponents, sizes[:2].log())
    assert "Small changes grow in 1 direction:" in str(found)


def test_rotating_pair_shares_its_exponent():
    """Complex eigenvalues turn, so the two R_ii swing about their mean; it is reached as 1/T."""
    a, b = 0.6, 0.7
    found = lyapunov_spectrum(linear(torch.tensor([[a, -b], [b, a]], dtype=F64), T=400))
    torch.testing.assert_close(found.exponents, torch.full((2,), math.log(math.hypot(a, b)), dtype=F64))


def test_random_linear_network():
    """The sum of all exponents is log |det U|, whatever the directions do: no settling is needed."""
    U = torch.randn(12, 12, dtype=F64) * 0.3
    found = lyapunov_spectrum(linear(U, T=50), warmup=0)
    assert found.exponents.sum().item() == pytest.approx(torch.linalg.slogdet(U).logabsdet.item(), rel=1e-10)


def test_sum_of_exponents_is_the_mean_log_determinant_of_the_full_jacobian():
    r = ran("lstm", T=30, B=3, reverse=True)
    found = lyapunov_spectrum(r, warmup=10)
    dets = torch.linalg.slogdet(state_jacobian(r).steps).logabsdet  # run from step 29 down
    torch.testing.assert_close(found.samples.sum(1), dets[:20].mean(0))
    assert found.states == 10 and found.steps == 20


def test_tanh_network_contracts():
    """sigma_1 < 1 and tanh' <= 1: every exponent lies below log sigma_1 < 0."""
    module = nn.RNN(4, 32).double()
    with torch.no_grad():
        module.weight_hh_l0.copy_(0.8 * torch.linalg.qr(torch.randn(32, 32, dtype=F64)).Q)
    found = lyapunov_spectrum(of_module(module, torch.randn(120, 4, 4)), 5)
    assert found.exponents[0] < math.log(0.8)
    assert (found.exponents.diff() <= 0).all()
    assert "It contracts" in str(found) and found.memory < 1 / -math.log(0.8)


def test_chaotic_network_has_a_positive_exponent():
    """Gain 3 without input is chaotic in a large tanh network (Sompolinsky 1988)."""
    module = nn.RNN(1, 80, bias=False).double()
    with torch.no_grad():
        module.weight_hh_l0.normal_(0, 3 / math.sqrt(80))
    states = [torch.randn(1, 3, 80, dtype=F64)]
    found = lyapunov_spectrum(of_module(module, torch.zeros(300, 3, 1), states), 3)
    assert found.exponents[0] - 3 * found.standard_error[0] > 0
    assert "gradients explode" in str(found) and found.memory == math.inf


def lstm_with_forget_bias(bias, H=32):
    module = nn.LSTM(8, H).double()
    with torch.no_grad():
        module.bias_ih_l0[H : 2 * H] = bias
        module.bias_hh_l0[H : 2 * H] = 0
    return module


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_holding_c_constant_is_wrong_by_orders_of_magnitude(seed):
    """The memory -1/lambda_1 of an LSTM with forget bias 5: about 0.3 steps with c held constant (dh_t/dh_{t-1} alone),
    about 170 for all that is carried. The carousel alone gives -1/ln sigmoid(5) = 149; what c brings back through h and
    the gates lengthens it in the best direction, in larger networks without end, so the test keeps to 16 units.
    """
    torch.manual_seed(seed)
    module = lstm_with_forget_bias(5.0, H=16)
    with torch.no_grad():
        module.weight_hh_l0 *= 0.3
    r = of_module(module, torch.randn(400, 2, 8))
    whole = lyapunov_spectrum(r, 1, warmup=150).memory
    constant = lyapunov_of_product(state_jacobian(r, samples=1).block("h", "h"), 1, warmup=150).memory
    assert 0.25 < constant < 0.4
    assert 130 < whole < 220


def test_forget_bias_alone_sets_the_exponents_of_an_idle_lstm():
    """Zero weights: c keeps sigmoid(b_f) of itself, h nothing at all: H exponents ln f, H of -inf."""
    module = lstm_with_forget_bias(3.0, H=4)
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
        module.bias_ih_l0[4:8] = 3.0
    found = lyapunov_spectrum(of_module(module, torch.randn(60, 2, 8)))
    f = 1 / (1 + math.exp(-3))
    torch.testing.assert_close(found.exponents[:4], torch.full((4,), math.log(f), dtype=F64))
    # What is lost is lost but for rounding: one step's R_ii is 0 or 1e-17 of what it was.
    assert (found.exponents[4:] < -30).all()
    assert found.memory == pytest.approx(-1 / math.log(f))


def test_padding_is_left_out():
    r = ran("gru", T=30, B=2, lengths=[30, 18])
    found = lyapunov_spectrum(r, warmup=4)
    dets = torch.linalg.slogdet(state_jacobian(r).steps).logabsdet
    want = torch.stack([dets[4:, 0].mean(), dets[4:18, 1].mean()])
    torch.testing.assert_close(found.samples.sum(1), want)


def test_standard_error_is_that_of_the_mean_over_the_batch():
    samples = torch.tensor([[-0.1, -1.0], [-0.3, -1.0], [-0.2, -1.0]], dtype=F64)
    found = LyapunovSpectrum(samples, 10, 0, 2)
    torch.testing.assert_close(found.exponents, torch.tensor([-0.2, -1.0], dtype=F64))
    torch.testing.assert_close(found.standard_error, torch.tensor([0.1 / math.sqrt(3), 0.0], dtype=F64))
    assert LyapunovSpectrum(samples[:1], 10, 0, 2).standard_error.isnan().all()
    wide = LyapunovSpectrum(torch.tensor([[-0.1], [0.1], [0.01]], dtype=F64), 10, 0, 1)
    assert "cannot be told from 0" in str(wide)


def test_refusals():
    r = ran("lstm", T=8, B=2, lengths=[8, 5])
    for call, message in {
        (lambda: lyapunov_spectrum(r, 11)): r"k must lie in 1..10.*came 11",
        (lambda: lyapunov_spectrum(r, 0)): "came 0",
        (lambda: lyapunov_spectrum(r, warmup=5)): "less than the steps of the shortest sequence, 5; came 5",
        (lambda: lyapunov_of_product(torch.ones(3, 2, 4))): r"matrices must be \[T, N, N\]",
        (lambda: lyapunov_of_product(torch.full((3, 2, 2), math.nan))): "NaN or infinite",
    }.items():
        with pytest.raises(FlowError, match=message):
            call()
