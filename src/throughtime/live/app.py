"""The addresses of the moving pages: what is served where."""

from __future__ import annotations

import threading
from pathlib import Path

import torch

from throughtime.errors import ConfigError
from throughtime.live import follow, pages
from throughtime.live.by_hand import cliff, memory_cell
from throughtime.live.checkpoints import Checkpoints
from throughtime.live.lab import Setting, measure
from throughtime.live.server import Handler, Reply, Request, Server, as_json
from throughtime.live.views import VIEWS

_measuring = threading.Lock()


def serve(port: int = 0, runs: Path | None = None) -> Server:
    """Starts the server of the lab and, with `runs`, of the live view over that folder. Raises ConfigError."""
    if runs is not None:
        follow.find(runs)  # a folder that is not there is told now
    torch.set_num_threads(1)  # the lab's networks are small: a second thread would cost more than it gives
    return Server(routes(runs), port)


def routes(runs: Path | None = None) -> dict[str, Handler]:
    """What answers at each address."""
    both = {"Runs": "/", "Lab": "/lab"}
    found: dict[str, Handler] = {
        "/style.css": lambda _: pages.style(),
        "/base.js": lambda _: pages.base(),
        "/lab.js": lambda _: pages.script("lab.js", "memory.js", "cliff.js", "views.js"),
        "/lab": lambda _: pages.lab({**both, "Lab": ""} if runs else {"Lab": ""}),
        "/lab/network": _network,
        "/lab/memory": _memory,
        "/lab/cliff": lambda request: as_json(cliff(request.query)),
        "/lab/view/": _view,
    }
    if runs is None:
        return {**found, "/": found["/lab"]}
    measured = Checkpoints(runs)
    return {
        **found,
        "/": lambda _: pages.runs({**both, "Runs": ""}),
        "/live.js": lambda _: pages.script("live.js"),
        "/runs/events": lambda _: follow.follow(runs),
        "/runs/flow": lambda request: as_json(measured.measure(request.query.get("run", ""))),
    }


def _network(request: Request) -> Reply:
    with _measuring:  # one after the other: two at once would both be late
        return as_json(measure(Setting.read(request.query)))


def _view(request: Request) -> Reply:
    found = VIEWS.get(request.rest)
    if found is None:
        raise ConfigError(f"there is no view {request.rest!r}; there are {', '.join(VIEWS)}")
    with _measuring:
        return as_json(found.measure(request.query))


def _memory(request: Request) -> Reply:
    try:
        gates = [tuple(map(float, three.split(","))) for three in request.query.get("gates", "").split(";")]
        inputs = [float(v) for v in request.query.get("inputs", "").split(",")]
    except ValueError:
        raise ConfigError("gates are i,f,o;i,f,o;... and inputs g,g,...: numbers") from None
    if any(len(three) != 3 for three in gates) or len(gates) > 1000:
        raise ConfigError("each step has three gates, i,f,o; at most 1000 steps")
    return as_json(memory_cell(gates, inputs))  # type: ignore[arg-type]
