"""How long the lab takes to answer a slider, cell by cell and view by view, over HTTP as the page asks it.

python -m benchmarks.lab_answers
"""

from __future__ import annotations

import platform
import statistics
import time
import urllib.request
from urllib.parse import urlencode

import torch

from throughtime import cells
from throughtime.live.app import serve
from throughtime.live.lab import LIMITS, Setting
from throughtime.live.views import VIEWS, Slider

ROUNDS = 9


def main() -> None:
    limits = {"units": LIMITS["units"][1], "steps": LIMITS["steps"][1]}
    start = {"units": Setting.units, "steps": Setting.steps}
    with serve() as server:
        times: dict[tuple[str, bool], list[float]] = {}
        for seed in range(ROUNDS + 1):
            for cell in cells.NAMES:
                for large in (False, True):
                    query = urlencode({"cell": cell, "seed": seed, **(limits if large else start)})
                    began = time.perf_counter()
                    urllib.request.urlopen(f"{server.address}lab/network?{query}").read()
                    if seed:  # the first round traces the cells
                        times.setdefault((cell, large), []).append(time.perf_counter() - began)
        views: dict[tuple[str, bool], list[float]] = {}
        for n in range(ROUNDS + 1):
            for name, view in VIEWS.items():
                for large in (False, True):
                    sliders = [c for c in view.controls if isinstance(c, Slider)]
                    ends = {c.name: c.high if large else c.start for c in sliders}
                    last = sliders[-1]  # each time in another place: nothing is known already
                    places = round((last.high - last.low) / last.step) + 1
                    at = round((ends[last.name] - last.low) / last.step) + (-n if large else n)
                    ends[last.name] = round(last.low + at % places * last.step, 6)
                    began = time.perf_counter()
                    urllib.request.urlopen(f"{server.address}lab/view/{name}?{urlencode(ends)}").read()
                    if n:
                        views.setdefault((name, large), []).append(time.perf_counter() - began)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, 1 thread")
    print(f"median of {ROUNDS} answers in milliseconds; the page asks once for each of its one or two cells")
    heads = [f"{v['units']} units, {v['steps']} steps" for v in (start, limits)]
    print(f"{'cell':26}{heads[0]:>20}{heads[1]:>24}")
    for cell in cells.NAMES:
        a, b = (1e3 * statistics.median(times[cell, large]) for large in (False, True))
        print(f"{cell:26}{a:20.0f}{b:24.0f}")
    print(f"\n{'view':26}{'at the start':>20}{'all sliders at the right':>24}")
    for name in VIEWS:
        a, b = (1e3 * statistics.median(views[name, large]) for large in (False, True))
        print(f"{name:26}{a:20.0f}{b:24.0f}")


if __name__ == "__main__":
    main()
