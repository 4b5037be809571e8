"""KNOW: what the data ask for, what the gradient reaches, and what follows."""

from __future__ import annotations

from throughtime.diagnosis.audit import audit
from throughtime.diagnosis.audit_clip import audit_clip
from throughtime.diagnosis.audit_run import audit_recording, audit_run
from throughtime.diagnosis.dependence import Dependence, dependence
from throughtime.diagnosis.finding import Finding, Where, describe
from throughtime.diagnosis.horizons import Horizons, gradient_interval, three_horizons
from throughtime.diagnosis.recording import Recording, record
from throughtime.diagnosis.use import Use, step_losses, use_horizon
from throughtime.diagnosis.verdict import verdict

__all__ = [
    "Dependence",
    "Finding",
    "Horizons",
    "Recording",
    "Use",
    "Where",
    "audit",
    "audit_clip",
    "audit_recording",
    "audit_run",
    "dependence",
    "describe",
    "gradient_interval",
    "record",
    "step_losses",
    "three_horizons",
    "use_horizon",
    "verdict",
]
