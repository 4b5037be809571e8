"""The commands of `throughtime`: train, sample, forecast, evaluate, diagnose, watch, and the rest of `entry`."""

from __future__ import annotations

from throughtime.cli.entry import main

__all__ = ["main"]
