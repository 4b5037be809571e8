"""KNOW: what the data ask for, what the gradient reaches, and what follows."""

from __future__ import annotations

from throughtime.diagnose.dependence import Dependence, dependence
from throughtime.diagnose.verdict import verdict

__all__ = ["Dependence", "dependence", "verdict"]
