"""Follows the logs of training runs while they are being written: what is new since the last look, as plain values."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from throughtime.errors import ConfigError

DEEPEST = 3  # folders below the root in which runs are looked for
MOST = 200  # runs
POINTS = 2000  # of one run in its first message
CHUNK = 32 * 2**20  # bytes read at one look
BESIDE = {"watch.jsonl": "watch", "guard.jsonl": "guard"}  # in the folder of a run, and of it
QUIET = 30.0  # seconds without a line until a run that has not ended counts as still


class Tail:
    """The lines of a file as they come. A file that was replaced or cut is read from its beginning again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._inode, self._at, self._rest = 0, 0, b""

    def read(self) -> tuple[bool, list[dict[str, Any]]]:
        """Whether it began anew, and the whole lines since the last look; what is no JSON object is left out."""
        try:
            with open(self.path, "rb") as file:
                now = os.fstat(file.fileno())
                anew = now.st_ino != self._inode or now.st_size < self._at
                if anew:
                    self._inode, self._at, self._rest = now.st_ino, 0, b""
                file.seek(self._at)
                data = file.read(CHUNK)
        except OSError:  # gone, or not yet there
            return False, []
        self._at += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return anew, [found for line in lines if (found := _object(line)) is not None]


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


class Run:
    """One run, by its `kind`: the folder of a `throughtime train` ("train"), a history of `tt.watch` ("watch"), or the
    incidents of a guard ("guard"). To the folder belong the watch's history and the guard's incidents in it."""

    def __init__(self, name: str, path: Path, kind: str) -> None:
        self.name, self.path, self.kind = name, path, kind
        self.id = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
        files = (
            {"train": path / "log.jsonl", **{k: path / f for f, k in BESIDE.items()}}
            if kind == "train"
            else {kind: path}
        )
        self._tails = {k: Tail(file) for k, file in files.items()}
        self._told: dict[str, Any] = {}
        self._alarms: dict[str, list[tuple[int, str]]] = {}
        self.step, self.ended, self.changed = 0, False, time.monotonic()

    @property
    def alarms(self) -> list[str]:
        """What went wrong, in the order of the steps."""
        return [text for _, text in sorted((a for those in self._alarms.values() for a in those), key=lambda a: a[0])]

    def look(self, first: bool) -> dict[str, Any] | None:
        """What a page is to be told, or None if nothing has changed.

        points:   [step, loss, gradient norm, validation loss or None] of each new line; all of them if `anew`.
        horizons: [step, gradient horizon, whether at least that, place] of each new measurement of a watch; all of them
                  if `watched_anew`.
        """
        points: list[list[Any]] = []
        horizons: list[list[Any]] = []
        seen = {kind: tail.read() for kind, tail in self._tails.items()}
        if seen[self.kind][0]:
            self.step, self.ended = 0, False
        for kind, (began, lines) in seen.items():
            if began:
                self._alarms[kind] = []
            if began or lines:
                self.changed = time.monotonic()
            for line in lines:
                if kind == "train":
                    self._trained(line, points)
                elif kind == "watch":
                    self._watched(line, points, horizons)
                else:
                    self._guarded(line)
        anew = first or seen[self.kind][0]
        news = any(began or lines for began, lines in seen.values())
        info = {
            "name": self.name, "kind": self.kind, "unit": self._unit(), "step": self.step,
            "steps": self._steps(), "state": self._state(), "checkpoint": self.checkpoint, "alarms": self.alarms[-20:],
        }  # fmt: skip
        if not (first or news or info != self._told):
            return None
        self._told = info
        watched = first or seen.get("watch", (False, []))[0]
        return {
            "id": self.id,
            "anew": anew,
            "points": _thinned(points),
            "watched_anew": watched,
            "horizons": horizons,
        } | info

    def _alarm(self, kind: str, step: int, text: str) -> None:
        self._alarms.setdefault(kind, []).append((step, text))

    def _trained(self, line: dict[str, Any], points: list[list[Any]]) -> None:
        step = line.get("step")
        if not isinstance(step, int):
            return
        self.step = step
        points.append([step, _number(line.get("loss")), _number(line.get("grad_norm")), _number(line.get("valid"))])
        self._check(points[-1])

    def _watched(self, line: dict[str, Any], points: list[list[Any]], horizons: list[list[Any]]) -> None:
        own = self.kind == "watch"  # and not beside a log, which has every step
        self.ended = self.ended or (own and "end" in line)
        step = line.get("step")
        at = step if isinstance(step, int) else self.step
        for note in _list(line.get("notes")):
            self._alarm("watch", at, str(note))
        if not isinstance(step, int):
            return
        if own:
            self.step = step
            points.append([step, _number(line.get("loss")), _number(line.get("grad_norm")), None])
            self._check(points[-1])
        for seen in _list(line.get("recurrences")):
            if not isinstance(seen, dict):
                continue
            place = f"{seen.get('name')}, layer {seen.get('layer')}{', reverse' if seen.get('reverse') else ''}"
            reach = seen.get("horizon")
            if isinstance(reach, dict):
                horizons.append([step, _number(reach.get("steps")), bool(reach.get("at_least")), place])
            elif seen.get("problem"):
                self._alarm("watch", step, f"step {step}: {place}: {seen['problem']}")

    def _guarded(self, line: dict[str, Any]) -> None:
        step = line.get("iteration")
        if isinstance(step, int):
            self.step = self.step if self.kind == "train" else step
            counted = "step" if self.kind == "train" else "iteration"
            self._alarm("guard", step, f"{counted} {step}: {line.get('fault')}; {line.get('done')}")

    def _check(self, point: list[Any]) -> None:
        for what, value in zip(("loss", "gradient norm", "validation loss"), point[1:], strict=True):
            if isinstance(value, str):
                self._alarm(self.kind, point[0], f"step {point[0]}: the {what} is {value}")

    def _unit(self) -> str:
        """Of the loss, for short: a run on text has it in bits per symbol."""
        if self.kind != "train":
            return "loss"
        try:
            kind = json.loads((self.path / "config.json").read_bytes())["kind"]
        except (OSError, ValueError, KeyError, TypeError):
            return "loss"
        return "bits" if kind == "text" else "loss"

    def _steps(self) -> int | None:
        """How many steps it is to have, where that is known."""
        if self.kind != "train":
            return None
        try:
            found = json.loads((self.path / "config.json").read_bytes())["config"]["steps"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if isinstance(found, int) else None

    def _state(self) -> str:
        if self.ended or (self.kind == "train" and self.step and self.step == self._steps()):
            return "finished"
        return "training" if time.monotonic() - self.changed < QUIET else "still"

    @property
    def checkpoint(self) -> str | None:
        """The newest one of a run of `throughtime train`."""
        if self.kind != "train":
            return None
        try:
            with os.scandir(self.path / "checkpoints") as entries:
                names = [e.name for e in entries if e.name.startswith("step-") and e.name[5:].isdecimal()]
        except OSError:
            return None
        return max(names, key=lambda n: int(n[5:]), default=None)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any) -> float | str | None:
    """A number; NaN and infinities, and the words for them, as words."""
    if isinstance(value, str):
        return {"nan": "NaN", "inf": "infinite", "-inf": "-infinite"}.get(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if value != value:
        return "NaN"
    return value if abs(value) != float("inf") else "infinite" if value > 0 else "-infinite"


def _thinned(points: list[list[Any]]) -> list[list[Any]]:
    """Not more than about POINTS of them, evenly; each that has a validation loss stays."""
    every = -(-len(points) // POINTS)
    return [p for i, p in enumerate(points) if i % every == 0 or p[3] is not None] if every > 1 else points


def find(root: Path) -> dict[str, Run]:
    """The runs in a folder, or the folder itself if it is one, by id; at most MOST. Raises ConfigError without one."""
    if not root.is_dir():
        raise ConfigError(f"there is no folder {root}; name the folder that holds your runs")
    found: list[Run] = []
    for folder, inside, files in os.walk(root):
        here = Path(folder)
        below = here.relative_to(root)
        inside[:] = sorted(n for n in inside if not n.startswith(".") and n != "checkpoints")
        if len(below.parts) >= DEEPEST:
            inside.clear()
        trained = "log.jsonl" in files and "config.json" in files
        if trained:
            found.append(Run(str(below) if below.parts else here.resolve().name, here, "train"))
        for name in sorted(files):
            if not name.endswith(".jsonl") or name == "log.jsonl" or (trained and name in BESIDE):
                continue
            kind = _kind(here / name)
            if kind is not None:
                found.append(Run(str(below / name), here / name, kind))
    return {run.id: run for run in found[:MOST]}


def _kind(path: Path) -> str | None:
    """What the first line of a file says it is."""
    try:
        with open(path, "rb") as file:
            head = _object(file.readline(4096))
    except OSError:
        return None
    said = None if head is None else head.get("throughtime")
    return said if said in ("watch", "guard") else None


def follow(root: Path, every: float = 0.5) -> Iterator[dict[str, Any] | None]:
    """What a page is to be told, for as long as it listens: {"runs": [...], "gone": [ids]}, or None as a sign of life.

    The first message has all that there is. Runs that begin later, begin again or are removed are told of.
    """
    runs: dict[str, Run] = {}
    began = True
    while True:
        now = find(root) if root.is_dir() else {}
        gone = [i for i in runs if i not in now]
        new = {i for i in now if i not in runs}
        runs = {i: runs.get(i, run) for i, run in now.items()}
        told = [found for i, run in runs.items() if (found := run.look(i in new)) is not None]
        yield {"began": began, "runs": told, "gone": gone} if began or told or gone else None
        began = False
        time.sleep(every)
