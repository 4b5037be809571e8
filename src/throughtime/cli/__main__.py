"""Runs the command line as `python -m throughtime.cli`."""

from __future__ import annotations

import sys

from throughtime.cli import main

sys.exit(main())
