"""CURE: clipping, initialisation, penalties, noise, dropout, truncated BPTT, skips, the guard, prescribe."""

from __future__ import annotations

from throughtime.cures.advise import ClipAdvice, SpikeSteps, advise_clip
from throughtime.cures.changes import Change, Changes
from throughtime.cures.cliff import Cliff, cliff
from throughtime.cures.clip import ClipGroups, ClipNorm, ClipRecord, ClipStep, ClipValue
from throughtime.cures.clip_adaptive import AutoClip, ZClip
from throughtime.cures.derivative import ClipGradient, clip_derivative, clip_gradient, clip_output, truncate_gradient
from throughtime.cures.dropout import LockedDropout, VariationalDropout
from throughtime.cures.flight import FlightRecord
from throughtime.cures.flossing_penalty import flossing, lyapunov_exponents
from throughtime.cures.guard import Guard
from throughtime.cures.guard_batches import Batches
from throughtime.cures.guard_log import IncidentLog
from throughtime.cures.guard_report import GuardCost, Incident
from throughtime.cures.guard_rule import Rule
from throughtime.cures.guard_snapshot import Parts, Snapshot
from throughtime.cures.init import identity_, orthogonal_, spectral_radius_
from throughtime.cures.init_gates import chrono_, forget_gate_bias_, half_life
from throughtime.cures.noise import InputNoise, WeightNoise, add_input_noise
from throughtime.cures.noise_adaptive import AdaptiveWeightNoise
from throughtime.cures.omega_penalty import omega, omega_captured
from throughtime.cures.prescribe import prescribe
from throughtime.cures.prescribe_remedies import (
    Candidate,
    Chrono,
    Clip,
    GateBias,
    LearningRate,
    OmegaPenalty,
    Orthogonal,
    Remedy,
    SpectralRadius,
    SwapCell,
    Training,
)
from throughtime.cures.prescribe_result import Outcome, Prescription
from throughtime.cures.prescribe_trial import Trial
from throughtime.cures.skip import skip_connections
from throughtime.cures.swap import swap_cell
from throughtime.cures.tbptt import Window, cut, restart, truncated_bptt, windows
from throughtime.cures.zoneout_layer import Zoneout, zoneout

__all__ = [
    "AdaptiveWeightNoise",
    "AutoClip",
    "Batches",
    "Candidate",
    "Change",
    "Changes",
    "Chrono",
    "Cliff",
    "Clip",
    "ClipAdvice",
    "ClipGradient",
    "ClipGroups",
    "ClipNorm",
    "ClipRecord",
    "ClipStep",
    "ClipValue",
    "FlightRecord",
    "GateBias",
    "Guard",
    "GuardCost",
    "Incident",
    "IncidentLog",
    "InputNoise",
    "LearningRate",
    "LockedDropout",
    "OmegaPenalty",
    "Orthogonal",
    "Outcome",
    "Parts",
    "Prescription",
    "Remedy",
    "Rule",
    "Snapshot",
    "SpectralRadius",
    "SpikeSteps",
    "SwapCell",
    "Training",
    "Trial",
    "VariationalDropout",
    "WeightNoise",
    "Window",
    "ZClip",
    "Zoneout",
    "add_input_noise",
    "advise_clip",
    "chrono_",
    "cliff",
    "clip_derivative",
    "clip_gradient",
    "clip_output",
    "cut",
    "flossing",
    "forget_gate_bias_",
    "half_life",
    "identity_",
    "lyapunov_exponents",
    "omega",
    "omega_captured",
    "orthogonal_",
    "prescribe",
    "restart",
    "skip_connections",
    "spectral_radius_",
    "swap_cell",
    "truncate_gradient",
    "truncated_bptt",
    "windows",
    "zoneout",
]
