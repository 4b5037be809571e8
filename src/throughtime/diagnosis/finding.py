"""One finding: how bad, where, the number, what it means and what to do; and how a list of them reads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from throughtime.errors import ConfigError
from throughtime.plain import Plain

# From worst to mildest. error: it is wrong and the numbers are not what they seem. warning: very likely not what was
# wanted. note: worth knowing, nothing to do. A healthy model has notes only.
SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Where(Plain):
    """A place in a model: the module's name in it, the layer, the direction, the parameter; as far as they apply."""

    module: str = ""
    layer: int | None = None
    reverse: bool | None = None
    parameter: str = ""

    def __str__(self) -> str:
        parts = [self.module or "the model itself"]
        if self.layer is not None:
            parts.append(f"layer {self.layer}")
        if self.reverse:
            parts.append("reverse")
        if self.parameter:
            parts.append(self.parameter)
        return ", ".join(parts)


@dataclass(frozen=True)
class Finding(Plain):
    """One thing that was found, as plain data.

    severity: "error", "warning" or "note".     code: a short fixed name, to sort and to filter by.
    where:    the place in the model.           what: what was found, in a few words, with its number.
    number:   that number alone, in `unit`; None where there is none.
    means, do: what it means, and what to do; `do` is empty where nothing need be done.
    """

    severity: str
    code: str
    where: Where
    what: str
    means: str
    do: str = ""
    number: float | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ConfigError(f"severity must be one of {', '.join(SEVERITIES)}; came {self.severity!r}")

    def __str__(self) -> str:
        lines = [f"{self.severity:<8} {self.where}: {self.what}", f"         {self.means}"]
        return "\n".join([*lines, f"         Do: {self.do}"] if self.do else lines)


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """The findings by importance; those of one severity stay in the order they were found in."""
    return sorted(findings, key=lambda f: SEVERITIES.index(f.severity))


def describe(findings: Sequence[Finding]) -> str:
    """A list of findings as text, with a first line that counts them."""
    if not findings:
        return "Nothing found."
    counts = [(s, sum(f.severity == s for f in findings)) for s in SEVERITIES]
    head = ", ".join(f"{n} {s}{'' if n == 1 else 's'}" for s, n in counts if n)
    return "\n".join([head, *(str(f) for f in ordered(findings))])


def steps(value: float) -> str:
    """A time in steps, short: "0.3 steps", "1 step", "170 steps", "without end"."""
    if math.isinf(value):
        return "without end"
    shown = f"{value:.1f}" if value < 10 else f"{value:.0f}"
    shown = shown.removesuffix(".0")
    return f"{shown} step{'' if shown == '1' else 's'}"
