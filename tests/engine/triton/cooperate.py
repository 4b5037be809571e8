"""Programs that wait for each other, run at the same time by Triton's interpreter: a thread for each program.

The interpreter itself runs one program after the other, in which none can wait for a later one. Which program goes on
when is left to the system, so that a barrier that lets one through too early is seen in the results.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from throughtime.engine.triton import kernel
from throughtime.engine.triton.writer import CONSTANTS

SECONDS = 60


class _Everyone:
    """In place of a kernel: called once for each program, it starts them all when the last one is called."""

    def __init__(self, function: Any, grid: tuple[int, ...], here: threading.local):
        self.function, self.grid, self.here = function, grid, here
        self.__signature__, self.__name__ = inspect.signature(function), function.__name__
        self.__globals__, self.__annotations__ = function.__globals__, function.__annotations__
        self.places: list[tuple[int, ...]] = []
        self.failed: list[BaseException] = []

    def __call__(self, **arguments: Any) -> None:
        self.places.append(self.here.place)
        if len(self.places) < self.grid[0] * self.grid[1]:
            return
        threads = [threading.Thread(target=self._one, args=(p, arguments), daemon=True) for p in self.places]
        for thread in reversed(threads):
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
        assert not self.failed, self.failed
        assert not any(thread.is_alive() for thread in threads), "a program waits for ever"

    def _one(self, place: tuple[int, ...], arguments: dict[str, Any]) -> None:
        self.here.place = place
        try:
            with np.errstate(all="ignore"):
                self.function(**arguments)
        except BaseException as err:
            self.failed.append(err)


@contextmanager
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """Within it, all programs of a launch run at the same time; the grids that were launched are in the list."""
    from triton.runtime import interpreter

    here, grids = threading.local(), []

    def run(text, grid, values, fixed):
        function = kernel._rewritten(text)
        numbers = [v if hasattr(v, "data_ptr") else kernel._scalar(v) for v in values]
        function.__annotations__.update(dict.fromkeys(CONSTANTS, "constexpr"))
        grids.append(tuple(grid))
        everyone = _Everyone(function, tuple(grid), here)
        interpreter.GridExecutor(everyone, [*text.params, *CONSTANTS], tuple(grid))(*numbers, **fixed)

    place = property(lambda self: here.place, lambda self, value: setattr(here, "place", value))
    switch = sys.getswitchinterval()
    with monkeypatch.context() as patch:
        patch.setattr(kernel, "interpret", run)
        patch.setattr(interpreter.InterpreterBuilder, "grid_idx", place, raising=False)
        sys.setswitchinterval(1e-4)
        try:
            yield grids
        finally:
            sys.setswitchinterval(switch)
