"""Measurements as the pages draw them: matrices as one byte a value, a gradient's flow as plain numbers."""

from __future__ import annotations

import base64
import math
from typing import Any

from torch import Tensor

from throughtime.flow.gradient_flow import GradientFlow

SMALLEST = -12.0  # a map is drawn down to 10 to this power of its largest value


def picture(v: Tensor, low: float, high: float) -> dict[str, Any]:
    """A matrix as one byte a value, from 0 at `low` to 255 at `high`; what is not a number is 0."""
    scaled = ((v.nan_to_num(low, high, low).clamp(low, high) - low) / (high - low) * 255).round().byte()
    data = base64.b64encode(scaled.contiguous().numpy().tobytes()).decode()
    return {"rows": v.shape[0], "columns": v.shape[1], "low": low, "high": high, "data": data}


def flow(measured: GradientFlow) -> dict[str, Any]:
    """By state: the profile over lags, horizon and half-life in steps, and the (t, k) map in powers of ten."""
    told = {}
    for name, sizes in measured.maps.items():
        if not sizes.any():
            continue
        horizon, half = measured.horizon(name), measured.half_life(name)
        told[name] = {
            "profile": measured.profile(name).tolist(), "horizon": horizon.steps, "at_least": horizon.at_least,
            "half_life": half if math.isfinite(half) else None,
            "largest": sizes.max().item(), "map": picture((sizes / sizes.max()).log10(), SMALLEST, 0),
        }  # fmt: skip
    return told
