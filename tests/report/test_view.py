"""Views take lists, arrays and tensors, and refuse what a page cannot show."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from throughtime.errors import ConfigError, ShapeError
from throughtime.flow import Horizon
from throughtime.report import DependenceView, ModelView, Page


def test_tensors_and_arrays_become_numbers() -> None:
    rows = torch.eye(3, dtype=torch.float64, requires_grad=True)
    view = ModelView(
        "a",
        "rnn",
        profile={"h": torch.tensor([1.0, 0.5])},
        maps={"h": rows, "c": rows.detach().numpy()},
        horizon={"h": Horizon(4, True), "c": 2},
    )
    assert view.profile["h"] == (1.0, 0.5)
    assert view.maps["h"] == view.maps["c"] == ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    assert view.horizon == {"h": Horizon(4, True), "c": Horizon(2, False)} and view.state == "h"


def test_validation_is_the_last_one_measured() -> None:
    history = [(1, 6.0, 6.1), (2, 5.0, 5.2), (3, 4.0, None)]
    assert ModelView("a", "rnn", history=history).valid == 5.2
    assert ModelView("a", "rnn", history=history, valid=5.0).valid == 5.0
    assert ModelView("a", "rnn").valid is None


@pytest.mark.parametrize(
    ("parts", "error", "says"),
    [
        ({"maps": {"h": [[1.0, 0.0]]}}, ShapeError, r"map 'h'.*\[T, T\]"),
        ({"maps": {"h": 3}}, ShapeError, "came int"),
        ({"maps": {"h": [[1.0], 2.0]}}, ShapeError, "flat list"),
        ({"profile": {"c": []}}, ShapeError, "lag 0"),
        ({"profile": {"c": ["x"]}}, ShapeError, "profile 'c'"),
        ({"profile": {"c": [-1.0]}}, ConfigError, "not their logarithms"),
        ({"history": [(1, 2.0)]}, ShapeError, "step, training bits"),
        ({"horizon": {"h": -1}}, ConfigError, "0 or more"),
        ({"horizon": {"h": 2.5}}, ConfigError, "whole number"),
    ],
)
def test_model_errors_name_the_field(parts: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        ModelView("a", "rnn", **parts)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"models": []}, "at least one"),
        ({"window": 0}, "1 or more"),
        ({"fraction": 1.0}, "between 0 and 1"),
        ({"models": [ModelView("a", "rnn"), ModelView("a", "lstm")]}, "names of their own"),
        ({"floors": {"unigram": math.nan}}, "finite"),
    ],
)
def test_page_errors(parts: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Page(**{"title": "t", "verdict": "v", "models": [ModelView("a", "rnn")], "window": 8, **parts})


def test_dependence_must_be_of_one_length() -> None:
    with pytest.raises(ShapeError, match="3, 3 and 1"):
        DependenceView([1, 2, 3], [0.1, 0.1, 0.1], [0.0])
