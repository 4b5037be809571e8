"""One plain sentence from the measured horizons: who can learn what the data ask for."""

from __future__ import annotations

from collections.abc import Mapping

from throughtime.errors import ConfigError
from throughtime.flow import Horizon


def verdict(data: Horizon, gradients: Mapping[str, Horizon], window: int) -> str:
    """Says which of several models the data's dependencies can reach, by their gradient horizons.

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
    able = {name: h for name, h in gradients.items() if h.steps >= asked}
    short = {name: h for name, h in gradients.items() if h.steps < asked}
    # The one that falls shortest is named first, so that the contrast reads from less to more.
    parts = [
        f"the gradient of the {name} vanishes after {h}" for name, h in sorted(short.items(), key=lambda kv: kv[1].steps)
    ]
    parts += [f"that of the {name} reaches {h}" for name, h in sorted(able.items(), key=lambda kv: kv[1].steps)]
    if not short:
        end = "each of them can learn it" if len(able) > 1 else "it can learn it"
        parts[0] = parts[0].replace("that of", "the gradient of", 1)
    elif able:
        end = f"only the {' and the '.join(able)} can learn all of it"
    else:
        best = max(short, key=lambda name: short[name].steps)
        end = "neither can learn all of it" if len(short) == 2 else "none can learn all of it" if len(short) > 2 else ""
        end = f"{end}, and the {best} comes farthest" if end else "it cannot learn all of it"
    return f"{text}; {', '.join(parts)}: {end}."
