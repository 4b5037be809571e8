"""One statement of the theory: what it says, its formula, its source, and where on the lab's page it is to be seen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Statement:
    """One sentence, its formula, who found it, and the lab's setting in which it can be seen.

    shown: fields of `throughtime.live.lab.Setting`, and with "cell-b" a second cell; "" is none; or of a small view.
    where: the part of the page that shows it: "network", "memory", "cliff" or one of `throughtime.live.views.VIEWS`.
    group: the heading that it stands under, one of `throughtime.live.statements.GROUPS`.
    """

    says: str
    formula: str
    source: str
    shown: dict[str, Any] = field(default_factory=dict)
    where: str = "network"
    group: str = ""


def setting(a: str, b: str = "", **other: Any) -> dict[str, Any]:
    start = {"units": 24, "steps": 80, "matrix": "gaussian", "radius": 1, "forget": 1, "input": 0.5, "loss": "last",
             "rule": "full"}  # fmt: skip
    return {"cell-a": a, "cell-b": b, **start, **other}
