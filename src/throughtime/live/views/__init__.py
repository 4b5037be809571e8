"""The lab's small views: each one statement of the theory, measured on the engine and drawn as a chart."""

from __future__ import annotations

from throughtime.live.views import (
    adding,
    curse,
    depth,
    directions,
    gates,
    generating,
    inside,
    penalties,
    telling,
    thresholds,
    update,
    whole,
    window,
)
from throughtime.live.views.chart import Chart, Choice, Curve, Slider, View

__all__ = ["VIEWS", "Chart", "Choice", "Curve", "Slider", "View"]

_ORDER = (
    update,
    telling,
    whole,
    adding,
    depth,
    directions,
    curse,
    window,
    inside,
    thresholds,
    gates,
    penalties,
    generating,
)
VIEWS: dict[str, View] = {m.VIEW.name: m.VIEW for m in _ORDER}
"""By the name in their addresses, in the order of the page."""
