"""KNOW: what the data ask for, what the gradient reaches, and what follows."""

from __future__ import annotations

from throughtime.diagnosis.assemble import from_capture
from throughtime.diagnosis.audit import audit
from throughtime.diagnosis.audit_clip import audit_clip
from throughtime.diagnosis.audit_run import audit_recording, audit_run
from throughtime.diagnosis.dependence import Dependence, dependence
from throughtime.diagnosis.diagnose import diagnose
from throughtime.diagnosis.finding import Finding, Where, describe
from throughtime.diagnosis.history import History, Record, Seen, read_history
from throughtime.diagnosis.horizons import Horizons, gradient_interval, three_horizons
from throughtime.diagnosis.measured import Measured
from throughtime.diagnosis.pooled import pooled_dependence
from throughtime.diagnosis.recording import Recording, record
from throughtime.diagnosis.result import Diagnosis, load_diagnosis
from throughtime.diagnosis.use import Use, step_losses, use_horizon
from throughtime.diagnosis.verdict import verdict
from throughtime.diagnosis.watch import watch
from throughtime.diagnosis.watcher import Watch

__all__ = [
    "Dependence",
    "Diagnosis",
    "Finding",
    "History",
    "Horizons",
    "Measured",
    "Record",
    "Recording",
    "Seen",
    "Use",
    "Watch",
    "Where",
    "audit",
    "audit_clip",
    "audit_recording",
    "audit_run",
    "dependence",
    "describe",
    "diagnose",
    "from_capture",
    "gradient_interval",
    "load_diagnosis",
    "pooled_dependence",
    "read_history",
    "record",
    "step_losses",
    "three_horizons",
    "use_horizon",
    "verdict",
    "watch",
]
