"""The result of a diagnosis: the verdict, the findings behind it, and everything that was measured, as plain data."""

from __future__ import annotations

import html
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from throughtime.diagnosis.dependence import Dependence
from throughtime.diagnosis.drawn import WIDTH, text
from throughtime.diagnosis.finding import Finding
from throughtime.diagnosis.horizons import Horizons, Interval
from throughtime.diagnosis.measured import Measured
from throughtime.diagnosis.use import Use
from throughtime.flow import Horizon, UpdateSizes
from throughtime.flow.figure import Mark, plot, svg
from throughtime.plain import Plain

HEALTHY = ("healthy", "no dependency", "no memory", "nearer")


@dataclass(frozen=True)
class Diagnosis(Plain):
    """What was found out about a recurrent model, as plain data; it prints, draws, saves and loads itself.

    case:     which case it is, in a word or two; see `CASES` in throughtime.diagnosis.conclusion.
    verdict:  the same in plain sentences.
    findings: what was found, by importance, each with its number, what it means and what to do.
    measured: every recurrence of the model.
    horizons: the three horizons, the gradient's that of the recurrence that reaches farthest.
    data, together, use, updates: what they and the findings are from; None for what was not measured.
    fraction: what the gradient horizon counts as arrived: this share of the size at lag 0.
    notes:    what could not be measured, and why; and what should be known of what was.
    norms, clip: the history of gradient norms, (step, norm) [n, 2], of a long one the largest in each stretch; and the
              threshold in use. None where they were not given.
    read:     of a model of a text the symbols of the first sequence, [T + 1] whole numbers; else None.
    """

    case: str
    verdict: str
    findings: tuple[Finding, ...]
    measured: tuple[Measured, ...]
    horizons: Horizons
    data: Dependence | None = None
    together: Dependence | None = None
    use: Use | None = None
    updates: UpdateSizes | None = None
    fraction: float = 0.01
    notes: tuple[str, ...] = ()
    norms: Tensor | None = None
    clip: float | None = None
    read: Tensor | None = None

    @property
    def healthy(self) -> bool:
        """Whether nothing above a note was found, and the gradient is known to reach as far as the data ask."""
        return self.case in HEALTHY and not self.worries

    @property
    def worries(self) -> tuple[Finding, ...]:
        """The findings that are more than notes."""
        return tuple(f for f in self.findings if f.severity != "note")

    def has(self, code: str) -> bool:
        """Whether there is a finding of this code."""
        return any(f.code == code for f in self.findings)

    def __str__(self) -> str:
        return self.text()

    def text(self, width: int = WIDTH) -> str:
        """For a terminal: the verdict, the profiles drawn by block characters over one axis of lags, the findings."""
        return text(self, width)

    def plot(self, ax: Any = None) -> Any:
        """Draws the profiles of all recurrences and the horizons into matplotlib's axes; gives the axes.

        Raises ThroughtimeError, with the command that installs it, where matplotlib is missing.
        """
        return plot(self._profiles(), self._marks(), fraction=self.fraction, ax=ax)

    def report(self, path: str | os.PathLike[str], *, symbols: Any = None) -> Path:
        """Writes the diagnosis as a page, one HTML file that opens offline (`throughtime.report.report`); gives its
        path. `symbols`: what the numbers of a text stand for, for the text view. Raises ReportError if it cannot be
        written."""
        from throughtime.report import report  # the room that draws pages stands above this one: only when asked

        return report(self, path, symbols=symbols)

    def _repr_html_(self) -> str:
        """For notebooks: the verdict, the profiles with the horizons, the findings; one piece of HTML, no scripts."""
        rows = "".join(
            f"<tr><td>{html.escape(f.severity)}</td><td>{html.escape(str(f.where))}</td><td>{html.escape(f.what)}</td>"
            f"<td>{html.escape(f.means)}{f'<br><i>{html.escape(f.do)}</i>' if f.do else ''}</td></tr>"
            for f in self.findings
        )
        drawn = svg(self._profiles(), self._marks(), fraction=self.fraction) if self._profiles() else ""
        notes = "".join(f"<p><small>note: {html.escape(n)}</small></p>" for n in self.notes)
        return (
            f"<div><p><b>{html.escape(self.verdict)}</b></p>{drawn}"
            f'<table style="text-align:left"><tbody>{rows}</tbody></table>{notes}</div>'
        )

    def _profiles(self) -> dict[str, Any]:
        return {str(m.where): m.profile for m in self.measured if m.profile is not None}

    def _marks(self) -> list[Mark]:
        h = self.horizons
        three: list[tuple[str, Horizon | None, Interval | None]] = [
            ("data", h.data, h.data_interval),
            ("gradient", h.gradient, h.gradient_interval),
            ("use", h.use, h.use_interval),
        ]
        return [
            Mark(name, at.steps, *(() if span is None else (span[0].steps, span[1].steps)))
            for name, at, span in three
            if at is not None and at.steps >= 0
        ]


def load_diagnosis(path: str | os.PathLike[str]) -> Diagnosis:
    """Reads a diagnosis that `Diagnosis.save` wrote; raises CheckpointError for a file that is missing, damaged,
    foreign or of another version."""
    return Diagnosis.load(path)
