"""The gradient through time in the latest checkpoint of a run, measured when somebody looks, once for each."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from throughtime.errors import ConfigError
from throughtime.live import follow
from throughtime.live.drawn import flow
from throughtime.train.data.streams import Streams
from throughtime.train.gradient import run_flow, text_flow
from throughtime.train.loop import load_from
from throughtime.train.model import LanguageModel
from throughtime.train.opened import open_run


class Checkpoints:
    """Measures on what the run keeps for validation: two windows or batches, which a processor has in a second or less
    where the model is small."""

    def __init__(self, root: Path) -> None:
        self._root, self._lock = root, threading.Lock()
        self._latest: dict[str, tuple[str, dict[str, Any]]] = {}
        self._history: dict[str, dict[int, list[Any]]] = {}

    def measure(self, run_id: str) -> dict[str, Any]:
        """By state, what `drawn.flow` gives; and all horizons measured so far, [step, horizon, whether at least].

        Raises ConfigError for an unknown run, and what loading a run raises.
        """
        run = follow.find(self._root).get(run_id)
        name = None if run is None else run.checkpoint
        if run is None or name is None:
            raise ConfigError("there is no such run, or it has no checkpoint")
        with self._lock:  # training needs the processors more: one measurement at a time
            if self._latest.get(run_id, ("",))[0] != name:
                opened = open_run(run.path)
                model, source = load_from(opened.run, name), opened.data.valid
                if source is None:
                    raise ConfigError("this run keeps no data for validation to measure on")
                if isinstance(model, LanguageModel) and isinstance(source, Streams):
                    found = flow(text_flow(model, source, windows=2))
                else:
                    found = flow(run_flow(model, source))
                self._latest[run_id] = name, found
                first = found.get("z") or next(iter(found.values()))
                step = int(name.removeprefix("step-"))
                self._history.setdefault(run_id, {})[step] = [step, first["horizon"], first["at_least"]]
            measured = self._latest[run_id][1]
            return {"checkpoint": name, "flow": measured, "horizons": sorted(self._history[run_id].values())}
