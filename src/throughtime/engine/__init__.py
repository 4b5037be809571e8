"""HOW a cell runs through time: traced once to a tape, differentiated, run by a backend."""

from __future__ import annotations

from throughtime.engine.derive import derive
from throughtime.engine.tape import Tape, loads
from throughtime.engine.trace import trace
from throughtime.engine.unroll import unroll

__all__ = ["Tape", "derive", "loads", "trace", "unroll"]
