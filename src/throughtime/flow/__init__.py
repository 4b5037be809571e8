"""SEE: the gradient through time of a recurrent layer, measured."""

from __future__ import annotations

from throughtime.flow.anchors import LagProfile, lag_profile
from throughtime.flow.bound import RecurrentMatrix, recurrent_matrices
from throughtime.flow.capture import Capture, Captured, capture
from throughtime.flow.carousel import CarouselPath, carousel_path
from throughtime.flow.depth import DepthProfile, depth_profile
from throughtime.flow.entering import Entering
from throughtime.flow.gates import GateRegimes, GateResult, GateStatistics, gate_statistics
from throughtime.flow.gradient_flow import GradientFlow, Horizon
from throughtime.flow.jacobian import JacobianResult, state_jacobian
from throughtime.flow.lyapunov import LyapunovSpectrum, lyapunov_of_product, lyapunov_spectrum
from throughtime.flow.measure import gradient_flow
from throughtime.flow.memory import MemoryStatistics, memory_statistics
from throughtime.flow.norms import NormHistory, norm_history
from throughtime.flow.recurrence import Recurrence
from throughtime.flow.shares import shares, totals
from throughtime.flow.shares_result import ParameterShares, Parts, Shares
from throughtime.flow.steps import StepRecurrence
from throughtime.flow.updates import Update, UpdateSizes, snapshot, step_sizes, update_sizes

__all__ = [
    "Capture",
    "Captured",
    "CarouselPath",
    "DepthProfile",
    "Entering",
    "GateRegimes",
    "GateResult",
    "GateStatistics",
    "GradientFlow",
    "Horizon",
    "JacobianResult",
    "LagProfile",
    "LyapunovSpectrum",
    "MemoryStatistics",
    "NormHistory",
    "ParameterShares",
    "Parts",
    "Recurrence",
    "RecurrentMatrix",
    "Shares",
    "StepRecurrence",
    "Update",
    "UpdateSizes",
    "capture",
    "carousel_path",
    "depth_profile",
    "gate_statistics",
    "gradient_flow",
    "lag_profile",
    "lyapunov_of_product",
    "lyapunov_spectrum",
    "memory_statistics",
    "norm_history",
    "recurrent_matrices",
    "shares",
    "snapshot",
    "state_jacobian",
    "step_sizes",
    "totals",
    "update_sizes",
]
