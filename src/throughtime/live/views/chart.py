"""A small view of the lab as plain data: its sliders and choices with their limits, and the chart that it draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from throughtime.errors import ConfigError


@dataclass(frozen=True)
class Slider:
    """A number that is set by a slider, within its limits; whole where `step` is."""

    name: str
    label: str
    low: float
    high: float
    step: float
    start: float

    def read(self, word: str) -> float:
        """From a word, as a page sends it. Raises ConfigError for what is no number within the limits."""
        try:
            value = float(word)
        except ValueError:
            raise ConfigError(f"{self.name} must be a number; came {word!r}") from None
        if not self.low <= value <= self.high:
            raise ConfigError(f"{self.name} must lie in {self.low:g}..{self.high:g}; came {word}")
        return value


@dataclass(frozen=True)
class Choice:
    """One of some words, each with what the page calls it."""

    name: str
    label: str
    words: Mapping[str, str]
    start: str

    def read(self, word: str) -> str:
        """Raises ConfigError for another word."""
        if word not in self.words:
            raise ConfigError(f"{self.name} must be one of {', '.join(self.words)}; came {word!r}")
        return word


@dataclass(frozen=True)
class Curve:
    """A line through points, or points alone; what is not finite is left out, and breaks the line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dots: bool = False
    thin: bool = False

    def plain(self) -> dict[str, Any]:
        """As the page gets it; raises ConfigError where x and y differ in length."""
        if len(self.x) != len(self.y):
            raise ConfigError(f"the curve {self.name} has {len(self.x)} places and {len(self.y)} values")
        return {"name": self.name, "x": list(self.x), "y": list(self.y), "dots": self.dots, "thin": self.thin}


@dataclass(frozen=True)
class Chart:
    """What a view shows at one setting.

    told:   what is to be seen there, in sentences, with its numbers.
    x, y:   what the axes are, with the unit.       log: whether y is drawn as powers of ten; lowest: its lower end.
    levels: heights worth a line, (value, word).    places: values of x worth one.
    """

    told: Sequence[str]
    x: str
    y: str
    curves: Sequence[Curve]
    log: bool = True
    lowest: float | None = None
    levels: Sequence[tuple[float, str]] = ()
    places: Sequence[tuple[float, str]] = ()

    def plain(self) -> dict[str, Any]:
        """As the page gets it."""
        return {
            "told": list(self.told), "x": self.x, "y": self.y, "log": self.log, "lowest": self.lowest,
            "curves": [c.plain() for c in self.curves], "levels": [list(v) for v in self.levels],
            "places": [list(v) for v in self.places],
        }  # fmt: skip


@dataclass(frozen=True)
class View:
    """A view: its name in addresses, its heading and formula, its controls, how to read it, and what draws it."""

    name: str
    title: str
    formula: str
    source: str
    reads: str
    draw: Callable[..., Chart]
    controls: Sequence[Slider | Choice] = field(default_factory=tuple)

    def read(self, query: Mapping[str, str]) -> dict[str, Any]:
        """The settings in a query, the others at their start. Raises ConfigError."""
        known = {c.name: c for c in self.controls}
        for name in query:
            if name not in known:
                raise ConfigError(f"there is no setting {name!r}; there are {', '.join(known)}")
        return {n: c.read(query[n]) if n in query else c.start for n, c in known.items()}

    def measure(self, query: Mapping[str, str]) -> dict[str, Any]:
        """The chart at these settings, as plain values. Raises ConfigError."""
        return self.draw(**self.read(query)).plain()
