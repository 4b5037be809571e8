"""The rule by which a candidate helps or does not: its loss against that of doing nothing, seed by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from throughtime.cures.prescribe_result import Outcome
    from throughtime.cures.prescribe_trial import Trial

ALPHA = 0.05
IMPROVES, OF_START = 0.02, 0.005  # of the loss at the end, and at the start: a smaller gain is not worth a change
Span = tuple[float, float]


def judge(o: Outcome, nothing: Outcome, candidates: int) -> Outcome:
    """The outcome with its loss against that of doing nothing, the interval, the cost, and whether it helps.

    It helps if its training held with every seed (`Trial.held`) and lowered its loss in each; if its loss ends lower
    than that of doing nothing by 2 %, and by half a percent of the loss at the start, for a loss that is as good as 0
    is not improved upon; and if, besides,

    - that is more than chance, where doing nothing held as well: the 95 % interval of the factor, seed by seed, over
      all candidates together (Student's t on logarithms, Bonferroni) lies below 1. Where a loss is not above 0, that
      of the difference below 0;
    - where doing nothing did not hold with some seed: nothing more is asked.
    """
    before = {t.seed: t.end for t in nothing.sound}
    pairs = [(t.end, before[t.seed]) for t in o.sound if t.seed in before]
    factor = all(a > 0 and b > 0 for a, b in pairs)
    each = [math.log(a / b) if factor else a - b for a, b in pairs]
    against, spread = mean(each), mean_interval(each, ALPHA / max(1, candidates))
    helps = not o.failed and all(t.held and t.end < t.start for t in o.trials)
    if pairs:
        enough = max(IMPROVES * abs(mean([b for _, b in pairs])), OF_START * abs(nothing.start))
        helps = helps and mean([b - a for a, b in pairs]) >= enough
    if all(t.held for t in nothing.trials):
        helps = helps and spread[1] < 0
    if factor:
        against, spread = math.exp(against), (_exp(spread[0]), _exp(spread[1]))
    cost = _typical(o.trials) / _typical(nothing.trials)
    return replace(o, against=against, against_interval=spread, factor=factor, helps=helps, cost=cost)


def choose_winner(found: Sequence[Outcome], nothing: Outcome) -> Outcome | None:
    """Of those that help the one with the lowest loss; or the first, and simplest, within 5 % of what it gains."""
    helping = [o for o in found if o.helps]
    if not helping:
        return None
    best = min(helping, key=lambda o: o.end)
    without = nothing.end if math.isfinite(nothing.end) else nothing.start
    return next(o for o in helping if o.end <= best.end + 0.05 * max(0.0, without - best.end))


def _exp(v: float) -> float:
    return math.exp(v) if v < 700 else math.inf


def mean(values: Sequence[float]) -> float:
    """The mean; NaN of nothing."""
    return sum(values) / len(values) if values else math.nan


def mean_interval(values: Sequence[float], alpha: float) -> Span:
    """The 1 - alpha interval of a mean (Student 1908); without bounds for fewer than two values."""
    if len(values) < 2 or not all(math.isfinite(v) for v in values):
        return (-math.inf, math.inf)
    half = student_quantile(alpha, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return (mean(values) - half, mean(values) + half)


def student_quantile(alpha: float, v: int) -> float:
    """What |t| exceeds with probability alpha, for Student's t with v degrees of freedom, exactly.

    P(|t| < sqrt(v) tan a) is a finite sum in sin a and cos a (Abramowitz & Stegun 26.7.3 and 26.7.4); by bisection.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(200):
        a = (low + high) / 2
        low, high = (a, high) if _within(a, v) < 1 - alpha else (low, a)
    return math.sqrt(v) * math.tan(low)


def _within(a: float, v: int) -> float:
    s, c = math.sin(a), math.cos(a)
    term, total = (c, 0.0) if v % 2 else (1.0, 0.0)
    for k in range(1 if v % 2 else 0, v - 1, 2):
        total += term
        term *= c * c * (k + 1) / (k + 2)
    return 2 / math.pi * (a + s * total) if v % 2 else s * total


def _typical(trials: Sequence[Trial]) -> float:
    known = [t.seconds for t in trials if not math.isnan(t.seconds)]
    return statistics.median(known) if known else math.nan
