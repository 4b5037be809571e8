"""Draws numbers into matplotlib's axes: the one place where matplotlib is needed, and only if a plot is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from throughtime.errors import ThroughtimeError

Numbers = Tensor | Sequence[float]
SMALLEST = 1e-300  # a logarithmic axis has no 0


def axes(ax: Any = None) -> Any:
    """The axes to draw into: `ax`, or those of a new figure.

    Raises ThroughtimeError, with the command that installs it, where new ones are asked for and matplotlib is missing.
    """
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError:
        raise ThroughtimeError(
            "plots need matplotlib, which is not installed: pip install matplotlib (or throughtime[plot])"
        ) from None
    return pyplot.subplots(layout="constrained")[1]


def lines(
    curves: Mapping[str, Numbers], ax: Any, x: Numbers | None = None, *, xlabel: str, ylabel: str, log: bool = False
) -> Any:
    """Curves by name over x (0, 1, 2, ... if None), on a logarithmic axis if `log`; gives the axes."""
    ax = axes(ax)
    for name, y in curves.items():
        values = [float(v) for v in y]
        at = range(len(values)) if x is None else [float(v) for v in x]
        ax.plot(at, [max(v, SMALLEST) for v in values] if log else values, label=name)
    if log:
        ax.set_yscale("log")
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    if len(curves) > 1:
        ax.legend()
    return ax


def matrix(values: Tensor, ax: Any, *, xlabel: str, ylabel: str, title: str) -> Any:
    """A matrix of sizes [n, m] as an image of their decimal logarithms, 0 left blank; gives the axes."""
    ax = axes(ax)
    shown = values.double().log10()
    shown[~shown.isfinite()] = float("nan")
    image = ax.imshow(shown.tolist(), origin="lower", aspect="auto", interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label=title)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    return ax
