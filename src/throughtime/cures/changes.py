"""What a cure changed in a model, in place: where, and what, as plain data that prints itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from throughtime.plain import Plain


@dataclass(frozen=True)
class Change(Plain):
    """One change: the place (module, layer, direction, parameter) and what stands there now."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True)
class Changes(Plain):
    """All that one cure changed in a model, and what it left as it was, with the reason."""

    title: str
    made: tuple[Change, ...]
    left: tuple[Change, ...] = field(default=())

    def __str__(self) -> str:
        lines = [self.title, *(f"  {change}" for change in self.made)]
        return "\n".join([*lines, *(f"  left as it was: {change}" for change in self.left)])
