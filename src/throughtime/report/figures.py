"""The figures that a page has: which ones, their headings, and captions that say how to read them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from throughtime.report.html import value
from throughtime.report.pack import PackedMap
from throughtime.report.payload import run_length
from throughtime.report.text import escape
from throughtime.report.view import Page


def percent(fraction: float) -> str:
    """0.01 as "1 %"."""
    return f"{fraction * 100:.6g} %"


def frames(page: Page, packed: Sequence[dict[str, PackedMap]]) -> str:
    """The frames of the figures that have data, numbered in order; the page's script draws into them."""
    parts: list[tuple[str, str, str]] = []
    if page.data_horizon is not None or any(m.horizon for m in page.models):
        parts.append(
            (
                "horizons",
                "How far the gradient reaches",
                (
                    "Each line runs from the loss, at lag 0, back to a horizon; where a model&rsquo;s line ends "
                    "short of what is asked for, what lies beyond is hardly learned. The tick on a line is its "
                    "half-life."
                ),
            )
        )
    if any(m.profile for m in page.models):
        bound = (
            " The thin dashes are the bound, (&sigma;&#8321; max&thinsp;|f&prime;|)<sup>lag</sup>: the measured decay "
            "stays under it, often far."
            if any(m.bound is not None for m in page.models)
            else ""
        )
        below = (
            " Below: how much the target depends on the input at the same lag; inside the shade it is chance."
            if page.dependence is not None and page.dependence.lags
            else ""
        )
        parts.append(
            (
                "lags",
                "How it fades with the lag",
                (
                    "Size of the gradient at each lag, relative to lag 0, on a logarithmic scale; the mark on a "
                    f"curve is its horizon, the last lag with at least {percent(page.fraction)}.{bound}{below}"
                ),
            )
        )
    if any(packed):
        parts.append(
            (
                "map",
                "Every loss, every step of its past",
                (
                    "A row is one loss, a column one step of the past, the diagonal the present; colour is the size "
                    "of the gradient between the two and fades into the page where it vanishes. The dashed line is "
                    "the horizon."
                ),
            )
        )
    if any(m.reading is not None for m in page.models):
        held = (
            " Under &ldquo;held by the gates&rdquo; the shade is how much of what was written the memory still holds."
            if any(m.reading is not None and m.reading.kept is not None for m in page.models)
            else ""
        )
        parts.append(
            (
                "reading",
                "The text itself",
                (
                    "Point at a character, or step with the arrow keys: the shade under the text before it is the "
                    f"gradient that its loss sends to each earlier one, over four powers of ten.{held}"
                ),
            )
        )
    if any(m.gates is not None for m in page.models):
        regimes = (
            " Below, a column is a unit, a row one of the eight regimes of its gates, and colour the share of time "
            "spent in it."
            if any(m.gates is not None and m.gates.units for m in page.models)
            else ""
        )
        parts.append(
            (
                "gates",
                "How the gates stand",
                (
                    "How often each gate has which value, from shut at 0 to open at 1: piled up at an end it is "
                    f"saturated and learns no more.{regimes}"
                ),
            )
        )
    if any(m.shares for m in page.models):
        parts.append(
            (
                "shares",
                "What each parameter learns from",
                (
                    "How much of a parameter&rsquo;s gradient comes from each lag; a row adds up to 1, and a share "
                    "below 0 points against the rest. Where all is at lag 0 the parameter learns from the present "
                    "alone."
                ),
            )
        )
    if any(m.eigenvalues for m in page.models):
        parts.append(
            (
                "eigenvalues",
                "The spectrum",
                (
                    "Eigenvalues of the recurrent matrix (rings) and of the state Jacobian at one step (dots) in the "
                    "complex plane. Inside the circle a direction fades from step to step, outside it grows."
                ),
            )
        )
    if any(m.watched for m in page.models):
        parts.append(
            (
                "watched",
                "How far it reached as it learned",
                (
                    "The gradient horizon at the steps of training at which the watch measured it; an open mark is a "
                    "horizon of at least that, for the gradient went back to the first step. The line across is what "
                    "is asked for, where that is known and not far above."
                ),
            )
        )
    if any(m.norms for m in page.models):
        parts.append(
            (
                "norms",
                "Gradient norm over training",
                (
                    "The norm of the whole gradient before clipping. Pick a threshold to see how many of the steps it "
                    "would have shortened; the marked one was in use."
                ),
            )
        )
    if any(m.history for m in page.models):
        run = max(run_length(len(m.history)) for m in page.models)
        mean = f" Each point is the mean of up to {run} records." if run > 1 else ""
        parts.append(
            (
                "loss",
                "What training made of it",
                (
                    f"The loss, in {escape(page.loss_unit)}, against training steps, lower is better: thin lines are "
                    f"training, thick lines with marks validation.{mean}"
                ),
            )
        )
    return "\n".join(
        f'<section class="drawn"><h2>{title}</h2>'
        f'<figure class="figure" id="figure-{kind}" data-figure="{kind}" '
        f'aria-labelledby="caption-{kind}"><div class="tools"></div><div class="stage"></div>'
        f'<figcaption id="caption-{kind}"><b>Figure {place}.</b> {caption}</figcaption></figure></section>'
        for place, (kind, title, caption) in enumerate(parts, 1)
    )


def storage(packed: Sequence[dict[str, PackedMap]]) -> str:
    """How exactly the maps are held in the file, in a sentence."""
    maps = [p for states in packed for p in states.values()]
    if not maps:
        return ""
    bits, stride = maps[0].bits, maps[0].stride
    kept = f" One step in {stride} is kept." if stride > 1 else ""
    worst = math.expm1(max(p.error for p in maps) * math.log(10)) * 100
    return (
        f"The maps are stored as {bits}-bit logarithms; a value read from them is within "
        f"{value(worst, 2)} % of the one measured.{kept}"
    )
