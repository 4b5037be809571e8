"""The history of gradient norms, and what a clip threshold does, against clipping itself."""

import math

import pytest
import torch

from throughtime.errors import FlowError
from throughtime.flow.norms import norm_history


def test_shares_are_what_clipping_would_have_done():
    history, cut, factors = [], 0, []
    for _ in range(200):
        p = torch.nn.Parameter(torch.zeros(3))
        p.grad = torch.randn(3)
        norm = torch.nn.utils.clip_grad_norm_([p], 1.5)
        history.append(norm)
        if norm > 1.5:
            cut += 1
            factors.append((p.grad.norm() / norm).item())
    found = norm_history(history)
    assert 20 < cut < 180
    assert found.clipped(1.5) == pytest.approx(cut / 200)
    assert found.kept(1.5) == pytest.approx(sum(factors) / cut, rel=1e-5)


def test_quantiles():
    found = norm_history([5, 1, 3, 2, 4])
    assert [found.quantile(q) for q in (0, 0.25, 0.5, 0.9, 1)] == pytest.approx([1, 2, 3, 4.6, 5])
    assert norm_history([2.0]).quantile(0.3) == 2


@pytest.mark.parametrize(
    ("threshold", "reading"),
    [(200, "never clips"), (95, "clips outliers"), (90, "clips outliers"), (50, "often clips"), (5, "always clips")],
)
def test_reading(threshold, reading):
    assert norm_history(range(1, 101)).reading(threshold) == reading


def test_nan_and_infinity_are_kept_and_counted_apart():
    found = norm_history([1.0, math.nan, 3.0, math.inf])
    assert found.broken == (1, 3) and found.finite == (1.0, 3.0) and len(found.norms) == 4
    assert found.quantile(0.5) == 2 and found.clipped(2) == 0.5
    assert "NaN or infinite at 2 of them, first at step 1" in str(found)
    nothing = norm_history([math.nan])
    assert "NaN or infinite at 1" in str(nothing) and nothing.clipped(1) == 0
    with pytest.raises(FlowError, match="no quantiles"):
        nothing.quantile(0.5)


def test_prints_a_table():
    text = str(norm_history([0.5] * 90 + [20.0] * 10))
    assert "Gradient norm over 100 steps" in text and "median 0.5" in text
    assert "clipped at 1         10.0% of the steps, to 0.05 of their length on average (clips outliers)" in text
    assert "clipped at 0.25     100.0% of the steps" in text and "always clips" in text
    assert "1 step\n" in str(norm_history([0.0]))


def test_refusals():
    for norms, message in {
        (): "no gradient norms",
        (1.0, -1.0): "below 0; came -1",
        ("a",): "one number a step",
    }.items():
        with pytest.raises(FlowError, match=message):
            norm_history(norms)
    found = norm_history([1.0])
    for call in (lambda: found.clipped(0), lambda: found.kept(-1), lambda: found.clipped(math.nan)):
        with pytest.raises(FlowError, match="a clip threshold must be above 0"):
            call()
    with pytest.raises(FlowError, match="a quantile must lie in"):
        found.quantile(90)
