"""A diagnosis for a terminal: the verdict, the profiles over one axis of lags by block characters, the findings."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from throughtime.diagnosis.dependence import Dependence
from throughtime.diagnosis.finding import Finding, ordered
from throughtime.diagnosis.use import Use
from throughtime.flow.figure import BLOCKS, block_row

if TYPE_CHECKING:
    from throughtime.diagnosis.result import Diagnosis

WIDTH = 100  # characters
_LEFT = 10  # for the names of rows
_COLUMNS = 72  # of the axis of lags, at most


def text(d: Diagnosis, width: int = WIDTH) -> str:
    """The whole diagnosis as text, `width` characters wide where words allow it."""
    parts = ["\n".join(_wrapped(f"[{d.case}] {d.verdict}", width)), "\n".join(picture(d, width))]
    findings = [line for f in ordered(d.findings) for line in _finding(f, width)]
    parts += ["\n".join([_counted(d.findings), *findings])] if findings else []
    parts += ["\n".join(line for n in d.notes for line in _wrapped(f"note: {n}", width, "  "))] * bool(d.notes)
    return "\n\n".join(p for p in parts if p)


def picture(d: Diagnosis, width: int = WIDTH) -> Iterator[str]:
    """The size of the gradient of each recurrence, the dependency in the data and the use of the past, by lag.

    All over one axis. The gradient's height is on a log scale from 1 to 1e-6; that of the others is relative to their
    largest, and empty where chance explains it.
    """
    ends = [len(m.profile) - 1 for m in d.measured if m.profile is not None]
    ends += [x.lags[-1] for x in (d.data, d.together, d.use) if x is not None]
    far = max(ends, default=0)
    columns = max(1, min(far + 1, _COLUMNS, width - _LEFT - 2))
    for m in d.measured:
        yield from _wrapped(m.line(), width)
        if m.profile is not None:
            yield _row("gradient", block_row(m.profile.tolist(), columns, far + 1))
        yield from (line for n in _remarks(m) for line in _wrapped(f"{'':{_LEFT}}{n}", width, " " * _LEFT))
    if d.data is not None:
        yield _row("data", _beyond(d.data, columns, far + 1))
    if d.together is not None and (d.data is None or d.together.horizon().steps > d.data.horizon().steps):
        yield _row("together", _beyond(d.together, columns, far + 1, fill=True))
    if d.use is not None:
        yield _row("use", _rise(d.use, columns, far + 1))
    if far:
        yield f"{'lag':<{_LEFT}} {_ticks(columns, far)}"


def _remarks(m: object) -> list[str]:
    estimated, notes = getattr(m, "estimated", None), getattr(m, "notes", ())
    return ([f"estimated from {estimated}"] if estimated else []) + list(notes)


def _row(name: str, drawn: str) -> str:
    return f"{name:<{_LEFT}}|{drawn}|"


def _beyond(found: Dependence, columns: int, n: int, fill: bool = False) -> str:
    """Heights relative to the largest, where beyond chance."""
    top = max(found.size)
    heights = {
        lag: max(size / top, 1e-9)
        for lag, size, real in zip(found.lags, found.size, found.beyond(), strict=True)
        if real and top > 0
    }
    return _bars(heights, columns, n, found.lags if fill else ())


def _rise(found: Use, columns: int, n: int) -> str:
    top, far = max(found.rise), found.horizon().steps
    heights = {lag: max(r / top, 1e-9) for lag, r in zip(found.lags, found.rise, strict=True) if lag <= far and r > 0}
    return _bars(heights, columns, n, found.lags)


def _bars(heights: dict[int, float], columns: int, n: int, lags: Sequence[int]) -> str:
    """The largest height in each column. lags: of what holds from a lag on, at which it was measured: what lies
    between two of them is as high as the lower."""
    row = [0.0] * columns
    for lag, height in heights.items():
        k = min(columns - 1, lag * columns // n)
        row[k] = max(row[k], height)
    for a, b in pairwise(lags):
        for k in range(a * columns // n + 1, b * columns // n):
            row[k] = min(heights.get(a, 0.0), heights.get(b, 0.0))
    return "".join(BLOCKS[min(7, math.ceil(h * 8) - 1)] if h > 0 else " " for h in row)


def _ticks(columns: int, far: int) -> str:
    """Numbers of lags under the columns that they stand in."""
    line = ""
    for k in range(0, columns, 12):
        lag = -(-k * (far + 1) // columns)
        line = f"{line:<{k}}{lag}" if k + len(str(lag)) <= columns else line
    return line


def _counted(findings: Sequence[Finding]) -> str:
    worries = sum(f.severity != "note" for f in findings)
    notes = len(findings) - worries
    found = f"{worries} finding{'' if worries == 1 else 's'}" if worries else "Nothing to worry about"
    return found + (f", {notes} note{'' if notes == 1 else 's'}" if notes else "")


def _finding(f: Finding, width: int) -> Iterator[str]:
    yield from _wrapped(f"{f.severity:<8} {f.where}: {f.what}", width, " " * 9)
    yield from _wrapped(f"{'':9}{f.means}", width, " " * 9)
    if f.do:
        yield from _wrapped(f"{'':9}Do: {f.do}", width, " " * 13)


def _wrapped(line: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
