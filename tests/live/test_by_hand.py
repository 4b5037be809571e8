"""The memory cell does what its gates say; the cliff is a cliff, and the clip takes one down it."""

import math
from itertools import pairwise

import pytest
import torch

from throughtime.errors import ConfigError
from throughtime.live.by_hand import cliff, loss_of_one_unit, memory_cell


def test_refresh_then_read_then_erase():
    told = memory_cell([(1, 0, 1), (0, 1, 1), (0, 1, 0), (1, 1, 0), (0, 1, 1), (0, 0, 0)], [0.9, 0.3, 0.5, 0.2, 0, 0])
    assert told["regime"] == ["refresh", "read-only", "hold", "store", "read-only", "erase"]
    assert told["c"] == pytest.approx([0.9, 0.9, 0.9, 1.1, 1.1, 0])
    assert told["h"] == pytest.approx([math.tanh(0.9), math.tanh(0.9), 0, 0, math.tanh(1.1), 0])
    assert told["kept"] == [1, 1, 1, 1, 1, 0]


def test_half_open_gates():
    told = memory_cell([(0.5, 0.5, 0.5)] * 3, [1, 1, 1])
    assert told["c"] == pytest.approx([0.5, 0.75, 0.875])
    assert told["kept"] == pytest.approx([1, 0.5, 0.25])


@pytest.mark.parametrize("gates, inputs", [([], []), ([(1, 1, 1)], []), ([(2, 0, 0)], [0]), ([(1, 0, 0)], [math.nan])])
def test_values_outside(gates, inputs):
    with pytest.raises(ConfigError):
        memory_cell(gates, inputs)


def longest_step(way):
    return max(math.hypot(b["w"] - a["w"], b["b"] - a["b"]) for a, b in pairwise(way))


def test_the_plain_step_is_thrown_out_and_the_clipped_one_arrives():
    told = cliff({})
    plain, clipped = told["plain"], told["clipped"]
    assert longest_step(clipped) == pytest.approx(2.0 * 0.1, rel=1e-6)
    assert clipped[-1]["loss"] < 0.01 < plain[-1]["loss"]
    assert longest_step(plain) > 10
    i, j = 20, 30
    at = torch.tensor([told["w"][j]], dtype=torch.float64), torch.tensor([told["b"][i]], dtype=torch.float64)
    assert told["loss"][i][j] == pytest.approx(loss_of_one_unit(*at).item())


def test_bad_words():
    for words in ({"w": "x"}, {"lr": "nan"}, {"steps": "1000"}, {"nope": "1"}):
        with pytest.raises(ConfigError):
            cliff(words)
