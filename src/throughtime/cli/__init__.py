"""The commands: `throughtime train`, `throughtime sample`, `throughtime demo`."""

from __future__ import annotations

from throughtime.cli.entry import main

__all__ = ["main"]
