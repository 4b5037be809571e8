"""The audit of a clip threshold: far above every gradient norm, or far below."""

from __future__ import annotations

from collections.abc import Sequence

from throughtime.diagnosis.finding import Finding, Where
from throughtime.flow.norms import norm_history


def audit_clip(norms: Sequence[float], threshold: float) -> list[Finding]:
    """Whether a clip threshold is of any use: `norms` are the global gradient norms before clipping, one a step.

    Far above: never reached, and 10 times the largest norm. Far below: at least nine steps in ten are clipped, and the
    median is 10 times the threshold. Raises FlowError for no norms and a threshold that is not above 0.
    """
    history = norm_history(norms)
    reading = history.reading(threshold)
    where = Where(parameter="clip threshold")
    if not history.finite:
        return [
            Finding(
                "error", "clip-threshold", where, "every gradient norm is NaN or infinite",
                "No threshold helps once it has happened.", "go back to a checkpoint from before",
            )
        ]  # fmt: skip
    middle, most = history.quantile(0.5), history.quantile(1.0)
    if reading == "never clips" and threshold > 10 * most:
        return [
            Finding(
                "warning", "clip-threshold", where,
                f"{threshold:g} is {threshold / most if most else float('inf'):.3g} times the largest norm, {most:.3g}",
                "It never clips, and would let a step through that is ten times too long.",
                f"about {history.quantile(0.99):.2g} clips one step in a hundred", threshold,
            )
        ]  # fmt: skip
    if reading == "always clips" and middle > 10 * threshold:
        return [
            Finding(
                "warning", "clip-threshold", where,
                f"{threshold:g} is {threshold / middle:.2g} of the median norm, {middle:.3g}",
                "It clips nearly every step: all have one length, and the threshold is a learning rate in disguise.",
                f"about {history.quantile(0.9):.2g} clips one step in ten; lower the learning rate instead", threshold,
            )
        ]  # fmt: skip
    return []
