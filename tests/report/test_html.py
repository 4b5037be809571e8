"""Numbers are read with three significant digits, and what is no number has a name."""

from __future__ import annotations

import math
from typing import Any

import pytest

from throughtime.report import ModelView, Page
from throughtime.report.figures import percent, storage
from throughtime.report.html import value
from throughtime.report.pack import pack


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (None, "\u2014"),
        (math.nan, "NaN"),
        (math.inf, "\u221e"),
        (-math.inf, "&minus;\u221e"),
        (0.0, "0"),
        (1.4396, "1.44"),
        (12.25, "12.2"),
        (127.0, "127"),
        (99999.4, "99999"),
        (0.0351, "0.0351"),
        (-2.5, "&minus;2.50"),
        (4.2e-7, "4.20 &times; 10<sup>&minus;7</sup>"),
        (3e9, "3.00 &times; 10<sup>9</sup>"),
    ],
)
def test_value(number: float | None, shown: str) -> None:
    assert value(number) == shown


def test_percent() -> None:
    assert [percent(f) for f in (0.01, 0.5, 0.001)] == ["1 %", "50 %", "0.1 %"]


def test_the_stated_error_of_the_maps_is_never_zero_by_rounding() -> None:
    packed = pack([[1.0, 0.0], [1e-9, 1.0]])
    stated = float(storage([{"h": packed}]).split("within ")[1].split(" %")[0])
    assert stated == pytest.approx(100 * (10**packed.error - 1), rel=0.05) and stated > 0
    assert storage([{}]) == ""


def test_the_headline_state_is_the_first_horizon(read: Any) -> None:
    model = ModelView("a", "lstm", horizon={"c": 7, "h": 3}, half_life={"h": 1.25, "c": 2.75})
    text = read(Page("t", "v", [model], 8)).text
    assert "a c72.75" in text and "1.25" not in text
