"""Draws the size of a gradient by lag: by block characters, as SVG for notebooks, and into matplotlib's axes."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from throughtime.flow import drawing

FLOOR = 1e-6  # what is smaller is drawn as nothing
BLOCKS = "▁▂▃▄▅▆▇█"
_COLOURS = ("#2a6f97", "#c1572d", "#5b8c3e", "#7b4b94", "#8a6d1b", "#444444")
_W, _H, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 240, 52, 12, 14, 34


class Mark(NamedTuple):
    """A horizon on the axis of lags: its name, its steps, and the interval it lies in, if known."""

    name: str
    steps: int
    low: int | None = None
    high: int | None = None


def blocks(profile: Tensor, width: int = 64) -> str:
    """A profile over lags [n] in one line of block characters: height is the size on a log scale, 1 to 1e-6.

    The first block is lag 0. With more lags than `width` each block is the largest of a stretch of lags.
    """
    n = len(profile)
    return f"lag 0 |{block_row(profile.tolist(), min(n, width), n)}| {n - 1}"


def block_row(sizes: Sequence[float], columns: int, n: int) -> str:
    """The blocks alone, over an axis of n lags in `columns` characters; where there is no size, or less than 1e-6, a
    space."""
    row = ""
    for k in range(columns):
        size = max(sizes[k * n // columns : max((k + 1) * n // columns, k * n // columns + 1)], default=0.0)
        if not size > FLOOR:
            row += " "
            continue
        height = 1 - math.log(min(size, 1.0)) / math.log(FLOOR)
        row += BLOCKS[min(7, int(height * 8))]
    return row


def svg(profiles: Mapping[str, Tensor], marks: Sequence[Mark] = (), *, fraction: float = 0.01) -> str:
    """Profiles over lags on a log axis, and horizons under them, as an SVG element that needs nothing else.

    Names may be anything: they are escaped.
    """
    lags = max([len(p) - 1 for p in profiles.values()] + [m.steps for m in marks] + [1])
    top = max([1.0] + [float(p[p.isfinite()].max()) for p in profiles.values() if len(p)])
    high, low = math.ceil(math.log10(top) - 1e-9), round(math.log10(FLOOR))
    rows = len(marks)
    height = _H + 18 * rows
    base = _H - _BOTTOM

    def x(lag: float) -> float:
        return _LEFT + (_W - _LEFT - _RIGHT) * lag / lags

    def y(size: float) -> float:
        at = min(max(math.log10(max(size, 1e-300)), low), high)
        return base - (base - _TOP) * (at - low) / (high - low)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_W} {height}" width="{_W}" height="{height}" '
        'role="img" aria-label="size of the gradient by lag" style="max-width:100%;height:auto;color:inherit" '
        'font-family="system-ui,sans-serif" font-size="11">'
    ]
    for decade in range(low, high + 1, max(1, (high - low) // 6)):
        at = y(10.0**decade)
        out.append(
            f'<line x1="{_LEFT}" x2="{_W - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="currentColor" '
            f'stroke-opacity=".15"/><text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end" fill="currentColor">'
            f"1e{decade}</text>"
        )
    out.append(
        f'<line x1="{_LEFT}" x2="{_W - _RIGHT}" y1="{y(fraction):.1f}" y2="{y(fraction):.1f}" stroke="currentColor" '
        'stroke-dasharray="4 3" stroke-opacity=".6"/>'
    )
    for lag in _ticks(lags):
        out.append(
            f'<text x="{x(lag):.1f}" y="{base + 15}" text-anchor="middle" fill="currentColor">{lag}</text>'
            f'<line x1="{x(lag):.1f}" x2="{x(lag):.1f}" y1="{base}" y2="{base + 4}" stroke="currentColor"/>'
        )
    for k, (name, profile) in enumerate(profiles.items()):
        points = " ".join(f"{x(d):.1f},{y(v):.1f}" for d, v in _thinned(profile))
        colour = _COLOURS[k % len(_COLOURS)]
        out.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
            f'<text x="{_W - _RIGHT - 4}" y="{_TOP + 10 + 13 * k}" text-anchor="end" fill="{colour}">'
            f"{html.escape(name)}</text>"
        )
    for k, mark in enumerate(marks):
        at = _H + 18 * k
        ends = f"{x(0):.1f}", f"{x(max(mark.steps, 0)):.1f}"
        out.append(
            f'<line x1="{ends[0]}" x2="{ends[1]}" y1="{at}" y2="{at}" stroke="{_COLOURS[k % 6]}" stroke-width="5"/>'
            f'<text x="{_LEFT - 6}" y="{at + 4}" text-anchor="end" fill="currentColor">{html.escape(mark.name)}</text>'
        )
        if mark.low is not None and mark.high is not None and mark.high > mark.low:
            a, b = x(max(mark.low, 0)), x(min(mark.high, lags))
            out.append(
                f'<line x1="{a:.1f}" x2="{b:.1f}" y1="{at}" y2="{at}" stroke="currentColor" stroke-width="1.5"/>'
            )
    out.append("</svg>")
    return "".join(out)


def plot(profiles: Mapping[str, Tensor], marks: Sequence[Mark] = (), *, fraction: float = 0.01, ax: Any = None) -> Any:
    """The same by matplotlib: into the axes `ax`, or into new ones; gives the axes.

    Raises ThroughtimeError, with the command that installs it, where matplotlib is missing.
    """
    ax = drawing.axes(ax)
    for name, profile in profiles.items():
        ax.semilogy(range(len(profile)), profile.clamp(min=1e-300).tolist(), label=name)
    ax.axhline(fraction, linestyle="--", linewidth=0.8, color="0.4")
    for k, mark in enumerate(marks):
        ax.axvline(mark.steps, color=f"C{len(profiles) + k}", linestyle=":", label=f"{mark.name}: {mark.steps} steps")
        if mark.low is not None and mark.high is not None and mark.high > mark.low:
            ax.axvspan(mark.low, mark.high, color=f"C{len(profiles) + k}", alpha=0.12, linewidth=0)
    top = max([1.0] + [float(p.max()) for p in profiles.values() if len(p)])
    ax.set_ylim(FLOOR, 2 * top)
    ax.set_xlabel("lag (steps)")
    ax.set_ylabel("size of the gradient, relative to lag 0")
    if profiles or marks:
        ax.legend()
    return ax


def _ticks(n: int) -> list[int]:
    step = max(1, 10 ** int(math.log10(max(n, 1))))
    step = next(s for s in (max(1, step // 5), max(1, step // 2), step, 2 * step) if n / s <= 10)
    return list(range(0, n + 1, step))


def _thinned(profile: Tensor) -> list[tuple[int, float]]:
    sizes = profile.tolist()
    stride = -(-len(sizes) // 500)
    return [(d, v) for d, v in enumerate(sizes) if math.isfinite(v) and (d % stride == 0 or d == len(sizes) - 1)]
