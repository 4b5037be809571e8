"""A (t,k) map made small: the logarithms of its lower triangle as integers in base64."""

from __future__ import annotations

import base64
import math
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from throughtime.errors import ConfigError, ShapeError

ZERO, NAN, INF, FIRST = 0, 1, 2, 3
"""The codes with a meaning of their own; `FIRST` is the smallest finite value of the map."""

FINE, COARSE = 220_000, 600_000
"""Entries a page may hold in all its maps at 16 bits, and at 8 bits; beyond that, steps are left out."""


@dataclass(frozen=True)
class PackedMap:
    """One map: `log10(value) = low + (code - FIRST) / (2**bits - 1 - FIRST) * (high - low)`.

    Row i is loss step `first + i * stride`, column j <= i is step `first + j * stride`; rows follow each
    other, little-endian. `first` is chosen so that the last row is the last loss step.
    """

    size: int
    first: int
    stride: int
    bits: int
    low: float
    high: float
    codes: str

    @property
    def error(self) -> float:
        """The largest rounding error of a finite value, in decades: half of one level."""
        return (self.high - self.low) / (2**self.bits - 1 - FIRST) / 2


def triangle(size: int) -> int:
    """Entries on and under the diagonal of a [size, size] map."""
    return size * (size + 1) // 2


def plan(window: int, maps: int) -> tuple[int, int]:
    """(bits, stride) with which `maps` maps of `window` steps fit into a page of well under 1 MB."""
    stride = 1
    while maps * triangle((window - 1) // stride + 1) > COARSE:
        stride += 1
    return (16 if maps * triangle((window - 1) // stride + 1) <= FINE else 8), stride


def pack(rows: Sequence[Sequence[float]], bits: int = 16, stride: int = 1) -> PackedMap:
    """Quantise the lower triangle of a [T, T] map of norms (row: loss step t, column: step k) on a log scale.

    Zeros, NaN and infinities keep codes of their own. Raises ShapeError for a map that is not square or has
    anything above the diagonal, ConfigError for a negative value.
    """
    total = len(rows)
    if total < 1 or any(len(row) != total for row in rows):
        widths = sorted({len(row) for row in rows}) or [0]
        raise ShapeError(
            f"a map must be [T, T], rows t and columns k; came {total} rows of {widths[0]} to {widths[-1]} columns"
        )
    if any(value != 0 and not math.isnan(value) for t, row in enumerate(rows) for value in row[t + 1 :]):
        raise ShapeError(
            "a map must be 0 where k > t (no gradient comes from the future); its rows are the "
            "loss steps t and its columns the steps k: pass its transpose, or, for a reverse "
            "direction, flip both axes"
        )
    steps = range((total - 1) % stride, total, stride)
    values = [float(rows[t][k]) for t in steps for k in steps if k <= t]
    if any(value < 0 for value in values):
        raise ConfigError("a map holds norms, which are never negative; pass the norms, not their logarithms")
    logs = [math.log10(value) if 0 < value < math.inf else None for value in values]
    finite = [log for log in logs if log is not None]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    levels = 2**bits - 1 - FIRST
    scale = levels / (high - low) if high > low else 0.0
    codes = array("H" if bits == 16 else "B")
    for value, log in zip(values, logs, strict=True):
        if log is not None:
            codes.append(FIRST + round((log - low) * scale))
        else:
            codes.append(ZERO if value == 0 else NAN if math.isnan(value) else INF)
    if sys.byteorder == "big":
        codes.byteswap()
    text = base64.b64encode(codes.tobytes()).decode("ascii")
    return PackedMap(len(steps), steps[0], stride, bits, low, high, text)


def unpack(packed: PackedMap) -> list[list[float]]:
    """The map back from its codes, [size, size], 0 above the diagonal; the page's script does the same."""
    codes = array("H" if packed.bits == 16 else "B", base64.b64decode(packed.codes))
    if sys.byteorder == "big":
        codes.byteswap()
    special = {ZERO: 0.0, NAN: math.nan, INF: math.inf}
    unit = (packed.high - packed.low) / (2**packed.bits - 1 - FIRST)
    rows = [[0.0] * packed.size for _ in range(packed.size)]
    for t in range(packed.size):
        for k in range(t + 1):
            code = codes[triangle(t) + k]
            log = packed.low + (code - FIRST) * unit
            rows[t][k] = special[code] if code in special else math.pow(10, log)
    return rows


def colour_range(maps: Sequence[PackedMap], below: float = 8.0, above: float = 4.0) -> tuple[float, float]:
    """(low, high) in log10 of the one colour scale that all maps share.

    It holds all finite values, but no more than `below` decades under the smallest and `above` decades over
    the largest of the maps' middle gradients at lag 0: one map that exploded must not flatten the others.
    """
    tops, bottoms, starts = [], [], []
    for packed in maps:
        values = [[v for v in row if 0 < v < math.inf] for row in unpack(packed)]
        finite = [v for row in values for v in row]
        if not finite:
            continue
        diagonal = sorted(row[-1] for row in values if row)
        tops.append(math.log10(max(finite)))
        bottoms.append(math.log10(min(finite)))
        starts.append(math.log10(diagonal[len(diagonal) // 2]))
    if not tops:
        return -1.0, 0.0
    low, high = max(min(bottoms), min(starts) - below), min(max(tops), max(starts) + above)
    return (low, high) if high - low > 1e-9 else (high - 1, high)
