"""One plain sentence from the measured horizons: who can learn what the data ask for."""

from __future__ import annotations

from collections.abc import Mapping

from throughtime.errors import ConfigError
from throughtime.flow import Horizon


def verdict(data: Horizon, gradients: Mapping[str, Horizon], window: int) -> str:
    """Says which of several models can reach the dependencies in the data, by their gradient horizons.

    data:      the data horizon, from `Dependence.horizon()`.
    gradients: for each model, by name, its gradient horizon.
    window:    T, the steps of truncated BPTT: no gradient was sent farther back than T - 1.

    A horizon that ends at the window is taken as reaching that far, and is said to. Raises ConfigError without models.
    """
    if not gradients:
        raise ConfigError("a verdict needs at least one model's gradient horizon")
    if data.steps < 0:
        return "The data hold no dependency beyond chance, at any lag that was measured: there is nothing to remember."
    asked = min(data.steps, window - 1)
    text = f"What comes next depends on what came {data} back"
    if data.steps > window - 1:
        text += f" (training looks back {window - 1})"
    ranked = sorted(gradients.items(), key=lambda item: item[1].steps)  # from less to more
    parts = [
        f"the gradient of the {name} {'reaches' if h.steps >= asked else 'vanishes after'} {h}" for name, h in ranked
    ]
    return f"{text}; {', '.join(parts)}: {_conclusion(ranked, asked)}."


def _conclusion(ranked: list[tuple[str, Horizon]], asked: int) -> str:
    able = [name for name, h in ranked if h.steps >= asked]
    if len(able) == len(ranked):
        return "each of them can learn all of it" if len(able) > 1 else "it can learn all of it"
    if able:
        return f"only the {' and the '.join(able)} can learn all of it"
    name, best = ranked[-1]
    if len(ranked) == 1:
        return f"it hardly learns what lies more than {best} back"
    second = ranked[-2][1].steps
    none = "neither" if len(ranked) == 2 else "none"
    if second == best.steps:
        return f"{none} learns much of what lies more than {best} back"
    span = f"{second + 1} steps" if second + 1 == best.steps else f"{second + 1} to {best.steps} steps"
    return f"only the {name} learns what lies {span} back, and {none} much of what lies farther"
