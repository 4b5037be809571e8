"""The curse of memory: long memory makes the state sensitive to the weights (Zucchet & Orvieto 2024)."""

import pytest
import torch

from tests.engine.problems import F64
from throughtime import cells
from throughtime.engine import unroll


@pytest.mark.parametrize("a", [0.0, 0.5, 0.9])
def test_sensitivity_of_a_linear_unit_on_white_noise(a):
    """E (dh/da)^2 = (1 + a^2) / (1 - a^2)^3 for h' = a h + x.

    1000 units at once, U = a I, each with a noise of its own: dh_i/da is the i-th element of U's gradient's diagonal.
    The tolerance is four standard errors of the mean, taken from the sample.
    """
    N, T = 1000, 1 if a == 0 else round(-12 / torch.tensor(a).log().item())  # a^(2T) = e^-24 is left out
    x = torch.randn(T + 2, 1, N, dtype=F64)
    U = (a * torch.eye(N, dtype=F64)).requires_grad_()
    (h,), _ = unroll(cells.Simple("identity"), x, torch.eye(N, dtype=F64), U)
    squares = torch.autograd.grad(h[-1].sum(), U)[0].diagonal().square()
    want, error = (1 + a**2) / (1 - a**2) ** 3, squares.std().item() / N**0.5
    assert error < 0.12 * want
    assert abs(squares.mean().item() - want) < 4 * error
