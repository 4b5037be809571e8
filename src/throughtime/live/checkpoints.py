"""The gradient through time in the latest checkpoint of a run, measured when somebody looks, once for each."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from throughtime.errors import ConfigError
from throughtime.live import follow
from throughtime.live.drawn import flow
from throughtime.train import LanguageModel, load, read_text
from throughtime.train.gradient import text_flow


class Checkpoints:
    """Measures on the run's own validation text; two windows of it, which a processor has in a second or less."""

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
                model = load(run.path, name)
                if not isinstance(model, LanguageModel):
                    raise ConfigError("this run has no text; only runs on text are measured here")
                text = read_text(model.config, model.vocabulary)
                if text.valid is None:
                    raise ConfigError("this run keeps no text for validation to measure on")
                found = flow(text_flow(model, text.valid, windows=2))
                self._latest[run_id] = name, found
                first = found.get("z") or next(iter(found.values()))
                step = int(name.removeprefix("step-"))
                self._history.setdefault(run_id, {})[step] = [step, first["horizon"], first["at_least"]]
            measured = self._latest[run_id][1]
            return {"checkpoint": name, "flow": measured, "horizons": sorted(self._history[run_id].values())}
