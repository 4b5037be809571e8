"""throughtime: see, understand and cure the gradient through time of recurrent networks.

What most people need is here; the rest is in the submodules: `cells` (the equations), `engine` (how a cell runs through
time), `nn` (the layers), `flow` (the gradient through time), `diagnosis` (what it means), `cures` (what helps),
`train`, `report`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from throughtime import cells, cures, diagnosis, engine, flow, nn, report, train
    from throughtime.cells import Cell
    from throughtime.cures.guard import Guard
    from throughtime.cures.prescribe import prescribe
    from throughtime.cures.prescribe_result import Prescription
    from throughtime.diagnosis.diagnose import diagnose
    from throughtime.diagnosis.result import Diagnosis, load_diagnosis
    from throughtime.diagnosis.watch import watch
    from throughtime.ecosystem import lightning, transformers
    from throughtime.engine import unroll
    from throughtime.errors import ThroughtimeError
    from throughtime.flow import GradientFlow
    from throughtime.flow.capture import capture
    from throughtime.flow.measure import gradient_flow
    from throughtime.nn import Recurrent
    from throughtime.nn.convert import convert
    from throughtime.nn.explain import explain
    from throughtime.nn.export import export

__version__ = "0.1.0"

_SUBMODULES = ("cells", "cures", "diagnosis", "engine", "flow", "nn", "report", "train")
_HOME = {
    "Cell": "cells",
    "Diagnosis": "diagnosis",
    "GradientFlow": "flow",
    "Guard": "cures",
    "Prescription": "cures",
    "Recurrent": "nn",
    "ThroughtimeError": "errors",
    "capture": "flow",
    "convert": "nn",
    "diagnose": "diagnosis",
    "explain": "nn",
    "export": "nn",
    "gradient_flow": "flow",
    "lightning": "ecosystem",
    "load_diagnosis": "diagnosis",
    "prescribe": "cures",
    "transformers": "ecosystem",
    "unroll": "engine",
    "watch": "diagnosis",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `throughtime --help` need not wait for torch."""
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBMODULES, *_HOME])


__all__ = [
    "Cell",
    "Diagnosis",
    "GradientFlow",
    "Guard",
    "Prescription",
    "Recurrent",
    "ThroughtimeError",
    "capture",
    "cells",
    "convert",
    "cures",
    "diagnose",
    "diagnosis",
    "engine",
    "explain",
    "export",
    "flow",
    "gradient_flow",
    "lightning",
    "load_diagnosis",
    "nn",
    "prescribe",
    "report",
    "train",
    "transformers",
    "unroll",
    "watch",
]
