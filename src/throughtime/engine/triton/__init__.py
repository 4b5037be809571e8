"""The GPU engine: any cell's tape, forward and back through time, written out as Triton kernels."""

from __future__ import annotations

from throughtime.engine.triton.backend import backward, forward, saved_width
from throughtime.engine.triton.support import refusal, why_not

__all__ = ["backward", "forward", "refusal", "saved_width", "why_not"]
