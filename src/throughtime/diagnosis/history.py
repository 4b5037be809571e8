"""The history of a watched training: one record a measurement, in memory and as lines of JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from throughtime.errors import CheckpointError
from throughtime.files import write_file, writing
from throughtime.flow import Horizon

KIND, FORMAT = "watch", 1
"""What stands in the first line of a file; another format is refused."""


@dataclass(frozen=True)
class Seen:
    """One recurrence in one measurement, as plain data.

    name, layer, reverse: where it is in the model.   cell: what kind.   calls: of how many calls it is made.
    steps:     T, the time steps it ran.              carried: how its first state came ("attached", "detached", None).
    horizon:   the gradient horizon in steps, at 1 % (`GradientFlow.horizon`); None where it could not be measured.
    half_life: of the gradient, in steps; math.inf if the profile stays above 1/2 as far as measured.
    lags, sizes: the profile at some lags: the size of the gradient relative to lag 0.
    estimated: from what it was estimated ("16 of 256 loss steps and 4 of 64 sequences"); None where it is exact.
    problem:   why it could not be measured: NaN, no gradient that enters, an explosion; None if it could.
    """

    name: str
    cell: str
    layer: int = 0
    reverse: bool = False
    calls: int = 1
    steps: int = 0
    carried: str | None = None
    horizon: Horizon | None = None
    half_life: float | None = None
    lags: tuple[int, ...] = ()
    sizes: tuple[float, ...] = ()
    estimated: str | None = None
    problem: str | None = None

    @property
    def place(self) -> str:
        """Which recurrence it is, in words."""
        return f"{self.name}, layer {self.layer}{', reverse' if self.reverse else ''}"

    def __str__(self) -> str:
        if self.horizon is None:
            return f"{self.place} ({self.cell}): {self.problem}" if self.cell else f"{self.place}: {self.problem}"
        half = self.half_life
        life = "none within" if half is None or math.isinf(half) else f"{half:.1f} steps"
        text = f"{self.place} ({self.cell}): gradient horizon {self.horizon} of {self.steps}, half-life {life}"
        return f"{text}, estimated from {self.estimated}" if self.estimated else text


@dataclass(frozen=True)
class Record:
    """One measurement of a watched training, as plain data.

    step:       the backward passes through the model so far, this one included.
    seconds:    since the beginning, when it was made.     spent: the seconds that this measurement took.
    cost:       the share of training time that watching had taken by then, `Budget.cost`.
    loss:       what backward() started from, where that is one number; scaled, if the user scales it (as AMP does).
    grad_norm:  of all parameters together, before any clipping.     grad_norms: of each parameter by name.
    updates:    ||W_after - W_before|| / ||W_before|| of the step that followed, by parameter; empty where none did.
    recurrences: what was seen of each.     notes: what could not be seen.
    """

    step: int
    seconds: float
    spent: float = 0.0
    cost: float = 0.0
    loss: float | None = None
    grad_norm: float | None = None
    grad_norms: Mapping[str, float] = field(default_factory=dict)
    updates: Mapping[str, float] = field(default_factory=dict)
    recurrences: tuple[Seen, ...] = ()
    notes: tuple[str, ...] = ()

    def line(self) -> str:
        """The record as a line of the file; NaN and infinities are the strings "nan", "inf" and "-inf"."""
        return _line(asdict(self))

    def __str__(self) -> str:
        told = [f"step {self.step}"]
        told += [f"loss {self.loss:.4g}"] if self.loss is not None else []
        told += [f"gradient norm {self.grad_norm:.3g}"] if self.grad_norm is not None else []
        return "\n".join([", ".join(told), *(f"  {s}" for s in self.recurrences), *(f"  {n}" for n in self.notes)])


@dataclass(frozen=True)
class History:
    """A history that was read from a file.

    model, budget: what was watched, and with which share of time.
    steps, cost, notes: as told at the end; None and empty where the process was killed before, then `ended` is False.
    """

    model: str
    budget: float
    records: tuple[Record, ...]
    ended: bool = False
    steps: int | None = None
    cost: float | None = None
    notes: tuple[str, ...] = ()


class Writer:
    """Appends to the file, one whole line in one write, there for others to read at once.

    What is already there is never touched: the file must be new, or, with `goes_on`, one that `cut` has made ready.
    After a write that failed nothing more is written.
    """

    def __init__(self, path: Path, model: str, budget: float, goes_on: bool = False):
        self.path, self._process, self.failed = path, os.getpid(), ""
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if goes_on and path.exists():
                self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
                return
            try:
                self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                raise CheckpointError(
                    f"{path} is already there, and a history is never written over; choose another path, or move it"
                ) from None
        self._write(_line({"throughtime": KIND, "format": FORMAT, "model": model, "budget": budget}))

    def append(self, record: Record) -> None:
        """One more record."""
        self._write(record.line())

    def close(self, steps: int, cost: float, notes: tuple[str, ...]) -> None:
        """The last line; the file is closed."""
        self._write(_line({"end": True, "steps": steps, "cost": cost, "notes": list(notes)}))
        if os.getpid() == self._process:
            os.close(self._file)

    def _write(self, line: str) -> None:
        if self.failed or os.getpid() != self._process:
            return
        data = line.encode()
        try:
            if os.write(self._file, data) != len(data):
                self.failed = f"{self.path} could not be written to its end: no space left"
        except OSError as error:  # training goes on; what was measured is still in memory
            self.failed = f"{self.path} could not be written: {error.strerror or error}"


def read_history(path: str | os.PathLike[str]) -> History:
    """Reads what `tt.watch(model, path=...)` wrote; a last line cut short by a kill is left out.

    Raises CheckpointError for a file that is missing, that is no history or of another format, and one that names a
    damaged line.
    """
    try:
        lines = Path(path).read_text("utf-8").splitlines(keepends=True)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{path} is no history of tt.watch: it is not text") from None
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    try:
        head = json.loads(lines[0])
        known = head["throughtime"] == KIND
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        known = False
    if not known:
        raise CheckpointError(f"{path} is no history of tt.watch: its first line does not say so")
    if head.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {head.get('format')!r}, and this version of throughtime reads format {FORMAT}; use the "
            "version that wrote it"
        )
    records: list[Record] = []
    end: dict[str, Any] = {}
    for number, line in enumerate(lines[1:], 2):
        try:
            found = json.loads(line)
            if "end" in found:
                end = {
                    "ended": True, "steps": found["steps"], "cost": _number(found["cost"]),
                    "notes": tuple(found["notes"]),
                }  # fmt: skip
            else:
                records.append(read_record(found))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise CheckpointError(f"line {number} of {path} is damaged; remove that line to read the rest") from None
    try:
        budget = _number(head["budget"])
    except (ValueError, KeyError, TypeError, OverflowError):
        raise CheckpointError(f"line 1 of {path} is damaged: it has no budget; restore it from a copy") from None
    return History(str(head.get("model", "")), budget, tuple(records), **end)


def cut(path: Path, until: int) -> tuple[Record, ...]:
    """Makes a history ready for a training that goes on from step `until`: later records and the end are taken out.

    Gives the records that stay; none where there is no file. Raises as `read_history`, and WriteError.
    """
    if not path.exists():
        return ()
    found = read_history(path)
    records = tuple(r for r in found.records if r.step <= until)
    head = _line({"throughtime": KIND, "format": FORMAT, "model": found.model, "budget": found.budget})
    write_file(path, "".join([head, *(r.line() for r in records)]).encode())
    return records


def _line(content: dict[str, Any]) -> str:
    return json.dumps(_valid(content), allow_nan=False, separators=(",", ":")) + "\n"


def _valid(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Horizon):
        return value._asdict()
    if isinstance(value, Mapping):
        return {str(k): _valid(v) for k, v in value.items()}
    return [_valid(v) for v in value] if isinstance(value, tuple | list) else value


def read_record(found: dict[str, Any]) -> Record:
    """The record of a line, as `json.loads(record.line())` gives it. Raises KeyError, TypeError or ValueError."""
    known = {f.name for f in fields(Record)}
    data = {k: v for k, v in found.items() if k in known}
    if type(data["step"]) is not int:
        raise ValueError(f"no step: {data['step']!r}")
    for name in ("seconds", "spent", "cost", "loss", "grad_norm"):
        data[name] = _number(data[name])
    for name in ("grad_norms", "updates"):
        data[name] = {k: _number(v) for k, v in data[name].items()}
    data["recurrences"] = tuple(_seen(v) for v in data["recurrences"])
    return Record(**{**data, "notes": tuple(data["notes"])})


def _seen(found: dict[str, Any]) -> Seen:
    known = {f.name for f in fields(Seen)}
    data = {k: v for k, v in found.items() if k in known}
    horizon = data["horizon"]
    data["horizon"] = None if horizon is None else Horizon(int(horizon["steps"]), bool(horizon["at_least"]))
    data["half_life"] = _number(data["half_life"])
    data["lags"], data["sizes"] = tuple(data["lags"]), tuple(_number(v) for v in data["sizes"])
    return Seen(**data)


def _number(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, str) and value not in ("nan", "inf", "-inf"):
        raise ValueError(f"no number: {value!r}")
    return float(value)
