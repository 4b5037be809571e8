"""Finds the line of a module's own code whose operation first made a bad number of good ones, and at which run."""

from __future__ import annotations

import linecache
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from throughtime.cures.flight_log import is_bad
from throughtime.flow.tree import leaves

_LIBRARY = (str(Path(torch.__file__).parent), str(Path(__file__).parent.parent))
Site = tuple[CodeType, int, str]  # a place in the bytecode, and the operation


class LineFinder(TorchDispatchMode):
    """Counts how often each operation of the user's code runs; `found` is the first that made a bad number.

    In a loop over time that count is the step: `run` of `runs`, from 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[Site, int] = {}
        self._site: Site | None = None
        self.found: str | None = None
        self.run = 0

    @property
    def runs(self) -> int:
        """How often that operation ran in all."""
        return 0 if self._site is None else self._counts[self._site]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        frame = _user_frame()
        if frame is None:
            return out
        site = (frame.f_code, frame.f_lasti, str(func))
        self._counts[site] = self._counts.get(site, 0) + 1
        made = self._site is None and any(is_bad(v) for v in leaves(out))
        if made and not any(is_bad(v) for v in leaves((args, kwargs or {}))):
            name, line = frame.f_code.co_filename, frame.f_lineno
            text = linecache.getline(name, line).strip()
            self._site, self.run = site, self._counts[site] - 1
            self.found = f"{Path(name).name}:{line}: {text} ({func})"
        return out


def _user_frame() -> FrameType | None:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(_LIBRARY):
        frame = frame.f_back
    return frame
