"""The kernels' tanh, sigmoid and exp in float32: the stated errors, and the values at the ends."""

import math

import numpy as np
import pytest

from throughtime.engine.cpu import library
from throughtime.engine.cpu.program import CODE

# Every size and sign of argument, and densely where the functions turn.
RANGE = np.concatenate([np.linspace(-87, 88.7, 400_001), np.linspace(-3, 3, 400_001), np.logspace(-37, 1.9, 100_001)])
ARGUMENTS = np.concatenate([RANGE, -RANGE[-100_001:]]).astype(np.float32)


def apply(name: str, a: np.ndarray) -> np.ndarray:
    out = np.full_like(a, np.nan)
    library.load().tt_apply(CODE[name], int(a.dtype == np.float64), out.ctypes.data, a.ctypes.data, a.size)
    return out


EXACT = {"tanh": (np.tanh, 4), "sigmoid": (lambda v: 1 / (1 + np.exp(-v)), 4), "exp": (np.exp, 2)}


@pytest.mark.parametrize("name", EXACT)
def test_error_in_units_of_the_last_place(isa, name):
    function, bound = EXACT[name]
    exact = function(ARGUMENTS.astype(np.float64))
    normal = np.abs(exact) > np.finfo(np.float32).tiny
    error = np.abs(apply(name, ARGUMENTS) - exact)[normal] / np.spacing(np.abs(exact[normal]).astype(np.float32))
    assert error.max() < bound


def test_the_ends(isa):
    ends = np.array([-math.inf, -200, -50, 50, 200, math.inf, math.nan, 0, -0.0], dtype=np.float32)
    assert np.array_equal(
        apply("tanh", ends), np.array([-1, -1, -1, 1, 1, 1, math.nan, 0, -0.0], np.float32), equal_nan=True
    )
    assert math.copysign(1, apply("tanh", ends)[-1]) == -1
    sigmoid = apply("sigmoid", ends)
    assert (sigmoid[:2] < 2e-38).all() and (sigmoid[3:6] == 1).all() and math.isnan(sigmoid[6]) and sigmoid[7] == 0.5
    exp = apply("exp", ends)
    assert exp[0] == exp[1] == 0 and exp[4] == exp[5] == math.inf and math.isnan(exp[6]) and exp[7] == 1


def test_every_length_of_a_row(isa):
    for n in range(1, 70):
        a = np.linspace(-2, 2, n, dtype=np.float64)
        np.testing.assert_allclose(apply("tanh", a), np.tanh(a), rtol=1e-15)
