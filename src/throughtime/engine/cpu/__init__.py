"""The CPU engine: any cell's tape, forward and back through time, by kernels in C++."""

from __future__ import annotations

from throughtime.engine.cpu.backend import backward, forward, refusal, saved_width
from throughtime.engine.cpu.library import available

__all__ = ["available", "backward", "forward", "refusal", "saved_width"]
