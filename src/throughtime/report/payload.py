"""The data that a page's script draws from, as one JSON object."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from throughtime.flow import Horizon
from throughtime.report.pack import PackedMap, colour_range, pack, plan
from throughtime.report.text import visible
from throughtime.report.view import STATE_NAMES, GatesView, ModelView, Page, ReadingView

POINTS = 1500
"""Points drawn per curve of the loss; a longer history is averaged in equal runs."""


def number(value: float | None) -> float | int | str | None:
    """A JSON value for a float: 6 significant digits, "nan", "inf" and "-inf" as words, None as null."""
    if value is None:
        return None
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def reach(value: Horizon | None) -> dict[str, Any] | None:
    """A horizon as JSON."""
    return None if value is None else {"steps": value.steps, "atLeast": value.at_least}


def run_length(records: int) -> int:
    """How many of a model's records one drawn point stands for."""
    return max(1, math.ceil(records / POINTS))


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """(step, bits) with each `run_length` points averaged, at the last step of each run.

    A run that holds a NaN or an infinity is NaN or infinite itself: nothing bad is averaged away.
    """
    run = run_length(len(points))
    parts = [points[start : start + run] for start in range(0, len(points), run)]
    return [(part[-1][0], sum(bits for _, bits in part) / len(part)) for part in parts]


def _largest(norms: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """(step, norm), of each `run_length` records the largest: a spike is what is looked for. NaN counts as largest."""
    run = run_length(len(norms))
    parts = [norms[start : start + run] for start in range(0, len(norms), run)]
    return [max(part, key=lambda p: math.inf if math.isnan(p[1]) else p[1]) for part in parts]


def _history(model: ModelView) -> dict[str, Any]:
    curves = {
        "train": thin([(step, bits) for step, bits, _ in model.history]),
        "valid": thin([(step, bits) for step, _, bits in model.history if bits is not None]),
    }
    return {
        name: {"step": [number(s) for s, _ in curve], "bits": [number(b) for _, b in curve]}
        for name, curve in curves.items()
    }


def _gates(gates: GatesView | None) -> dict[str, Any] | None:
    if gates is None:
        return None
    return {
        "histograms": {visible(n): [number(v) for v in shares] for n, shares in gates.histograms.items()},
        "regimes": [visible(n) for n in gates.regimes],
        "units": [[number(round(v, 3)) for v in row] for row in gates.units],
    }


def _reading(reading: ReadingView | None) -> dict[str, Any] | None:
    if reading is None:
        return None
    return {
        "symbols": [visible(s) for s in reading.symbols],
        "bits": [number(v) for v in reading.bits],
        "map": _map(pack(reading.map, 8)),
        "kept": None if reading.kept is None else _map(pack(reading.kept, 8)),
        "gates": {visible(n): [number(round(v, 3)) for v in values] for n, values in reading.gates.items()},
    }


def _map(packed: PackedMap) -> dict[str, Any]:
    return {
        "size": packed.size,
        "first": packed.first,
        "stride": packed.stride,
        "bits": packed.bits,
        "low": packed.low,
        "high": packed.high,
        "codes": packed.codes,
    }


def packed_maps(page: Page) -> list[dict[str, PackedMap]]:
    """Each model's maps, packed so that all of them together keep the page small."""
    count = sum(len(model.maps) for model in page.models)
    longest = max((len(m) for model in page.models for m in model.maps.values()), default=1)
    bits, stride = plan(longest, max(count, 1))
    return [
        {s: _placed(pack(rows, bits, stride), *model.map_steps) for s, rows in model.maps.items()}
        for model in page.models
    ]


def _placed(packed: PackedMap, first: int, stride: int) -> PackedMap:
    """The packed map of a map that itself has only some of the steps."""
    return replace(packed, first=first + stride * packed.first, stride=stride * packed.stride)


def ordered(states: Iterable[str]) -> list[str]:
    """States in reading order: the shown state, the memory cell, any other, and the net input last."""
    return sorted(states, key=lambda s: ({"h": 0, "c": 1, "z": 3}.get(s, 2), s))


def payload(page: Page, packed: Sequence[dict[str, PackedMap]]) -> dict[str, Any]:
    """The page as a JSON object; every string in it has been made visible."""
    states = {s for m in page.models for s in [*m.profile, *m.maps, *m.horizon]}
    low, high = colour_range([p for maps in packed for p in maps.values()])
    dependence = page.dependence
    return {
        "title": visible(page.title),
        "window": page.window,
        "fraction": page.fraction,
        "unit": visible(page.unit),
        "lossUnit": visible(page.loss_unit),
        "asks": visible(page.asks),
        "dataHorizon": reach(page.data_horizon),
        "stateNames": {visible(s): visible(STATE_NAMES.get(s, s)) for s in ordered(states)},
        "floors": [{"name": visible(name), "bits": number(value)} for name, value in page.floors.items()],
        "dependence": None
        if dependence is None or not dependence.lags
        else {
            "lags": [number(v) for v in dependence.lags],
            "bits": [number(v) for v in dependence.bits],
            "baseline": [number(v) for v in dependence.baseline],
            "unit": visible(dependence.unit),
            "what": visible(dependence.what),
        },
        "colour": {"low": low, "high": high},
        "models": [
            {
                "name": visible(model.name),
                "state": None if model.state is None else visible(model.state),
                "horizon": {visible(s): reach(r) for s, r in model.horizon.items()},
                "halfLife": {visible(s): number(v) for s, v in model.half_life.items()},
                "use": reach(model.use),
                "profile": {visible(s): [number(v) for v in p] for s, p in model.profile.items()},
                "maps": {visible(s): _map(p) for s, p in maps.items()},
                "history": _history(model),
                "gates": _gates(model.gates),
                "reading": _reading(model.reading),
                "shares": {visible(p): [number(v) for v in lags] for p, lags in model.shares.items()},
                "eigenvalues": {
                    of: [[number(a), number(b)] for a, b in all_] for of, all_ in model.eigenvalues.items()
                },
                "norms": [[number(s), number(v)] for s, v in _largest(model.norms)],
                "clip": number(model.clip),
                "watched": [[number(s), reach(r)] for s, r in model.watched],
                "bound": number(model.bound),
            }
            for model, maps in zip(page.models, packed, strict=True)
        ],
    }
