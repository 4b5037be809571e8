"""A packed map comes back within the error that it states, and special values come back exactly."""

from __future__ import annotations

import math
import random

import pytest

from throughtime.errors import ConfigError, ShapeError
from throughtime.report.pack import COARSE, FINE, colour_range, pack, plan, triangle, unpack


def lower(size: int, value: object) -> list[list[float]]:
    return [[float(value(t, k)) if k <= t else 0.0 for k in range(size)] for t in range(size)]  # type: ignore[operator]


@pytest.mark.parametrize("size", [1, 2, 7, 63])
@pytest.mark.parametrize("bits", [8, 16])
def test_round_trip_within_the_stated_error(size: int, bits: int) -> None:
    rng = random.Random(size)
    rows = lower(size, lambda t, k: 10 ** rng.uniform(-30, 3))
    packed = pack(rows, bits)
    back = unpack(packed)
    worst = max(abs(math.log10(back[t][k] / rows[t][k])) for t in range(size) for k in range(t + 1))
    assert worst <= packed.error * (1 + 1e-9) + 1e-12
    assert packed.error <= 33 / (2**bits - 4) / 2
    assert all(back[t][k] == 0 for t in range(size) for k in range(t + 1, size))


def test_zero_nan_and_infinity_come_back_as_they_are() -> None:
    rows = [[0.0, 0, 0], [math.inf, 1e-3, 0], [math.nan, 5e-324, 1.0]]
    back = unpack(pack(rows))
    assert back[0][0] == 0 and back[1][0] == math.inf and math.isnan(back[2][0])
    assert back[1][1] == pytest.approx(1e-3, rel=0.02) and back[2][2] == pytest.approx(1)
    assert 0 < back[2][1] < 1e-323


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, 0.25])
def test_a_map_of_one_value(value: float) -> None:
    packed = pack(lower(5, lambda t, k: value))
    assert packed.error == 0
    assert unpack(packed)[4][:5] == pytest.approx([value] * 5, nan_ok=True)


@pytest.mark.parametrize(("size", "stride"), [(10, 3), (9, 4), (5, 7), (8, 1)])
def test_a_stride_keeps_the_last_loss_step(size: int, stride: int) -> None:
    packed = pack(lower(size, lambda t, k: 1 + 100 * t + k), 16, stride)
    kept = [packed.first + i * stride for i in range(packed.size)]
    assert kept[-1] == size - 1 and kept[0] >= 0 and kept[0] < stride
    back = unpack(packed)
    for i, t in enumerate(kept):
        assert [round(v) for v in back[i][: i + 1]] == [1 + 100 * t + k for k in kept[: i + 1]]


@pytest.mark.parametrize("window", [1, 2, 128, 256, 512, 1000, 4096])
@pytest.mark.parametrize("maps", [1, 4, 8])
def test_plan_keeps_to_its_budget(window: int, maps: int) -> None:
    bits, stride = plan(window, maps)
    entries = maps * triangle((window - 1) // stride + 1)
    assert entries <= (FINE if bits == 16 else COARSE)
    assert stride == 1 or maps * triangle((window - 1) // (stride - 1) + 1) > COARSE
    if window <= 256 and maps <= 4:
        assert (bits, stride) == (16, 1)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ShapeError, match=r"\[T, T\]"):
        pack([[1.0, 0.0]])
    with pytest.raises(ShapeError, match="transpose"):
        pack([[1.0, 0.5], [0.0, 1.0]])
    with pytest.raises(ConfigError, match="not their logarithms"):
        pack([[-3.0]])


def test_the_colour_scale_is_shared_and_bounded() -> None:
    fades = pack(lower(40, lambda t, k: 10.0 ** -(t - k)))
    stays = pack(lower(40, lambda t, k: 100.0))
    blows = pack(lower(40, lambda t, k: 10.0 ** (t - k)))
    assert colour_range([fades]) == pytest.approx((-8, 0), abs=1e-3)
    assert colour_range([fades, stays]) == pytest.approx((-8, 2), abs=1e-3)
    assert colour_range([stays, blows]) == pytest.approx((0, 6), abs=1e-3)
    assert colour_range([stays]) == pytest.approx((1, 2))
    assert colour_range([pack([[0.0]]), pack([[math.nan]])]) == (-1, 0)
