"""SEE: the gradient through time of a recurrent layer, measured."""

from __future__ import annotations

from throughtime.flow.gradient_flow import GradientFlow, Horizon
from throughtime.flow.measure import gradient_flow
from throughtime.flow.recurrence import Recurrence

__all__ = ["GradientFlow", "Horizon", "Recurrence", "gradient_flow"]
