"""What a page shows, as plain frozen data: numbers and text only, checked when they are put together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from throughtime.errors import ConfigError, ShapeError
from throughtime.flow import Horizon

STATE_NAMES = {"h": "hidden state h", "c": "memory cell c", "z": "net input z"}
"""How the page calls the usual states; any other state goes by its own name."""


def as_horizon(value: Any) -> Horizon | None:
    """A Horizon from a whole number of steps, from a Horizon, or None."""
    if value is None or isinstance(value, Horizon):
        return value
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < 0:
        raise ConfigError(f"a horizon is a whole number of steps, 0 or more; came {value!r}")
    return Horizon(value.__index__(), False)


def numbers(value: Any, what: str) -> tuple[float, ...]:
    """A flat tuple of floats from a list, an array or a tensor; raises ShapeError for anything else."""
    value = value.tolist() if hasattr(value, "tolist") else value
    try:
        return tuple(float(v) for v in value)
    except (TypeError, ValueError) as error:
        raise ShapeError(f"{what}: expected a flat list of numbers; {error}") from error


def matrix(value: Any, what: str) -> tuple[tuple[float, ...], ...]:
    """A [T, T] tuple of rows from nested lists, an array or a tensor; raises ShapeError if not square."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, Iterable):
        raise ShapeError(f"{what}: expected [T, T] numbers; came {type(value).__name__}")
    rows = tuple(numbers(row, what) for row in value)
    if not rows or any(len(row) != len(rows) for row in rows):
        raise ShapeError(
            f"{what}: expected [T, T], rows t and columns k; came {len(rows)} rows of lengths "
            f"{sorted({len(row) for row in rows})}"
        )
    return rows


@dataclass(frozen=True)
class SampleView:
    """Text that a model wrote: the `prompt` it was given and the `text` that it went on with."""

    prompt: str
    text: str


@dataclass(frozen=True)
class FindingView:
    """One finding: how bad ("error", "warning", "note"), where, what was found, what it means and what to do."""

    severity: str
    where: str
    what: str
    means: str
    do: str = ""


@dataclass(frozen=True)
class TableView:
    """A table with a heading and a line that says how to read it; `code`, where there is some, stands below."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    code: str = ""


@dataclass(frozen=True)
class GatesView:
    """The gates of a recurrence: the share of values in equal bins from 0 to 1, by gate; and for each unit the share
    of time in each regime, [H, 8], with the regimes' names. Raises ShapeError where they do not fit."""

    histograms: Mapping[str, Sequence[float]]
    regimes: Sequence[str] = ()
    units: Sequence[Sequence[float]] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "histograms", {n: numbers(v, f"gate {n!r}") for n, v in self.histograms.items()})
        object.__setattr__(self, "units", tuple(numbers(row, "the regimes of a unit") for row in self.units))
        if any(len(row) != len(self.regimes) for row in self.units):
            raise ShapeError(f"each unit has a share for each of {len(self.regimes)} regimes; some have another number")


@dataclass(frozen=True)
class ReadingView:
    """A text as a model reads it, T + 1 symbols: at step t it has read symbols 0..t and is to tell symbol t + 1.

    `bits[t]` is what symbol t + 1 cost, or empty where that is not known; `map[t][k]` the size of the gradient that
    this loss sends to the state when symbol k was read; `kept[t][k]`, for a cell with a memory, how much of what was
    written at k its gates still hold at t; `gates[name][t]` the mean of a gate over units.
    Raises ShapeError where they do not fit.
    """

    symbols: Sequence[str]
    bits: Sequence[float]
    map: Any
    kept: Any = None
    gates: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", numbers(self.bits, "a reading, bits"))
        object.__setattr__(self, "map", matrix(self.map, "a reading, map"))
        if self.kept is not None:
            object.__setattr__(self, "kept", matrix(self.kept, "a reading, kept"))
        object.__setattr__(self, "gates", {n: numbers(v, f"a reading, gate {n}") for n, v in self.gates.items()})
        T = len(self.symbols) - 1
        lengths = {len(self.map), *([len(self.bits)] if self.bits else []), *map(len, self.gates.values())}
        if lengths != {T} or (self.kept is not None and len(self.kept) != T):
            raise ShapeError(f"a reading of {T + 1} symbols has {T} of all else; came {sorted(lengths)}")


@dataclass(frozen=True)
class DependenceView:
    """How much the target depends on the input at each lag, against chance.

    `bits[i]` is the dependence at `lags[i]`, in `unit`; `baseline[i]` what shuffled data give there. `what`
    names it.
    Raises ShapeError if the three differ in length.
    """

    lags: Sequence[int]
    bits: Sequence[float]
    baseline: Sequence[float]
    unit: str = "bits"
    what: str = "mutual information of two places in the text"

    def __post_init__(self) -> None:
        for name in ("lags", "bits", "baseline"):
            object.__setattr__(self, name, numbers(getattr(self, name), f"dependence, {name}"))
        if not len(self.lags) == len(self.bits) == len(self.baseline):
            raise ShapeError(
                f"dependence: lags, bits and baseline must be of one length; came "
                f"{len(self.lags)}, {len(self.bits)} and {len(self.baseline)}"
            )


@dataclass(frozen=True)
class ModelView:
    """One trained network as the page shows it.

    `history` holds (step, training bits, validation bits or None) per record; `profile[s]` the relative size
    of the gradient at each lag (1 at lag 0); `maps[s]` the norms ||dL_t/ds_k|| as [T, T]; `horizon[s]` and
    `half_life[s]` are in steps. The first state in `horizon` gives the headline number. `valid` defaults to
    the last validation in `history`. `use` is how far back the trained model uses its input, if measured.
    `shares[p]` is the share of parameter p's gradient from each lag; `eigenvalues` are (real, imaginary) of "U" and of
    the state Jacobian "J"; `norms` the gradient norms (step, norm) before clipping, and `clip` the threshold in use.
    `bound` is the factor a step that the gradient cannot exceed. `map_steps` is (first, stride): row and column i of a
    map are step first + i * stride.
    Raises ShapeError or ConfigError, naming the model and the field.
    """

    name: str
    cell: str
    equations: str = ""
    history: Sequence[tuple[float, float, float | None]] = ()
    profile: Mapping[str, Any] = field(default_factory=dict)
    maps: Mapping[str, Any] = field(default_factory=dict)
    horizon: Mapping[str, Any] = field(default_factory=dict)
    half_life: Mapping[str, float] = field(default_factory=dict)
    sample: SampleView | None = None
    use: Any = None
    valid: float | None = None
    gates: GatesView | None = None
    reading: ReadingView | None = None
    shares: Mapping[str, Any] = field(default_factory=dict)
    eigenvalues: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    norms: Sequence[tuple[float, float]] = ()
    clip: float | None = None
    bound: float | None = None
    map_steps: tuple[int, int] = (0, 1)
    watched: Sequence[tuple[float, Any]] = ()

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        mine = f"model {self.name!r}"
        put("profile", {s: numbers(p, f"{mine}, profile {s!r}") for s, p in self.profile.items()})
        put("maps", {s: matrix(m, f"{mine}, map {s!r}") for s, m in self.maps.items()})
        put("horizon", {s: as_horizon(r) for s, r in self.horizon.items()})
        put("half_life", {s: float(v) for s, v in self.half_life.items()})
        put("use", as_horizon(self.use))
        put("watched", tuple((float(step), as_horizon(reach)) for step, reach in self.watched))
        put("shares", {p: numbers(v, f"{mine}, shares of {p!r}") for p, v in self.shares.items()})
        put("history", tuple(self._record(record, mine) for record in self.history))
        if any(not p for p in self.profile.values()):
            raise ShapeError(f"{mine}: a profile holds at least lag 0; came an empty one")
        if any(value < 0 for p in self.profile.values() for value in p):
            raise ConfigError(
                f"{mine}: a profile holds sizes, which are never negative; pass the sizes, not their logarithms"
            )
        if self.valid is None:
            put("valid", next((v for _, _, v in reversed(self.history) if v is not None), None))

    @staticmethod
    def _record(record: Any, mine: str) -> tuple[float, float, float | None]:
        try:
            step, train, valid = record
            return float(step), float(train), None if valid is None else float(valid)
        except (TypeError, ValueError) as error:
            raise ShapeError(
                f"{mine}: a record of the history is (step, training bits, validation bits or None); came {record!r}"
            ) from error

    @property
    def state(self) -> str | None:
        """The state whose horizon is the headline: the first one in `horizon`."""
        return next(iter(self.horizon), None)


@dataclass(frozen=True)
class Page:
    """Everything on a page: the verdict, what the text asks for, and two or more models (one will do).

    `findings` and `tables` are shown as they are; `asks` names what the models are to learn from. `window` is T,
    the steps trained through; `data_horizon` the largest lag with dependence beyond chance, in
    steps; `floors` names reference lines of the loss in bits; `settings` becomes a table; `fraction` is the
    share of the lag-0 gradient that defines the horizon; `unit` is what one step reads; `loss_unit` what losses are
    measured in, without it bits per `unit`. Raises ConfigError.
    """

    title: str
    verdict: str
    models: Sequence[ModelView]
    window: int
    data_horizon: Any = None
    dependence: DependenceView | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    floors: Mapping[str, float] = field(default_factory=dict)
    fraction: float = 0.01
    unit: str = "character"
    dateline: str = ""
    asks: str = "The text"
    findings: Sequence[FindingView] = ()
    tables: Sequence[TableView] = ()
    loss_unit: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "models", tuple(self.models))
        object.__setattr__(self, "loss_unit", self.loss_unit or f"bits per {self.unit}")
        object.__setattr__(self, "data_horizon", as_horizon(self.data_horizon))
        object.__setattr__(self, "floors", {name: float(value) for name, value in self.floors.items()})
        if not self.models:
            raise ConfigError("a page needs at least one model; came none")
        names = [model.name for model in self.models]
        if len(set(names)) != len(names):
            raise ConfigError(f"the models of a page need names of their own; came {names}")
        if self.window < 1:
            raise ConfigError(f"the window is the steps trained through, 1 or more; came {self.window}")
        if not 0 < self.fraction < 1:
            raise ConfigError(f"fraction must lie between 0 and 1, both excluded; came {self.fraction}")
        if not all(math.isfinite(value) for value in self.floors.values()):
            raise ConfigError(f"floors are finite numbers of bits; came {dict(self.floors)}")
