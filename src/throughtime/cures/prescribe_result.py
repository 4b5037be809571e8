"""What `prescribe` found: each candidate's trials against doing nothing, the table, and the change as code to paste."""

from __future__ import annotations

import html
import math
import statistics
from dataclasses import dataclass
from typing import Any

from throughtime.cures.prescribe_judge import Span, mean
from throughtime.cures.prescribe_remedies import Candidate
from throughtime.cures.prescribe_trial import WORST, Trial
from throughtime.diagnosis.result import Diagnosis
from throughtime.flow import Horizon, drawing
from throughtime.plain import Plain


@dataclass(frozen=True)
class Outcome(Plain):
    """One candidate over all seeds, as plain data.

    against: its loss at the end as a factor of that of doing nothing, seed by seed, the geometric mean; NaN where no
            seed came through in both.     factor: False where losses are not above 0, and it is the mean difference.
    against_interval: its 95 % interval, over all candidates together (Bonferroni).
    helps:  whether it does, by the rule in `throughtime.cures.prescribe_judge.judge`.
    cost:   the time of a step as a multiple of that of doing nothing.
    """

    candidate: Candidate
    trials: tuple[Trial, ...]
    against: float = math.nan
    against_interval: Span = (-math.inf, math.inf)
    factor: bool = False
    helps: bool = False
    cost: float = 1.0

    def plot(self, ax: Any = None) -> Any:
        """Draws the loss of the batches by step, seed by seed, with matplotlib; gives the axes.

        ax: where to draw; None for a new figure. Raises ThroughtimeError where matplotlib is missing.
        """
        curves = {f"seed {t.seed}": t.losses for t in self.trials if t.losses}
        return drawing.lines(curves, ax, xlabel="step", ylabel="loss of the batch")

    @property
    def sound(self) -> tuple[Trial, ...]:
        """The trials that came through."""
        return tuple(t for t in self.trials if t.broken is None and not t.failed)

    @property
    def broken(self) -> int:
        """How many of the trials broke."""
        return sum(t.broken is not None for t in self.trials)

    @property
    def failed(self) -> str:
        """Why it could not be run; "" if it was."""
        return next((t.failed for t in self.trials if t.failed), "")

    @property
    def start(self) -> float:
        """The mean loss before the first step."""
        return mean([t.start for t in self.trials if not t.failed])

    @property
    def end(self) -> float:
        """The mean loss after the last step, of the trials that came through; inf if none did."""
        return mean([t.end for t in self.sound]) if self.sound else math.inf

    @property
    def end_range(self) -> Span:
        """The lowest and the highest loss after the last step, over the seeds."""
        ends = [t.end for t in self.sound]
        return (min(ends), max(ends)) if ends else (-math.inf, math.inf)

    def horizon(self, when: int) -> tuple[Horizon, Horizon] | None:
        """The least and the largest gradient horizon over the seeds, before (0) or after (1) the training."""
        found = sorted((h for t in self.trials if (h := t.horizons[when]) is not None), key=lambda h: tuple(h))
        return (found[0], found[-1]) if found else None

    @property
    def stability(self) -> str:
        """In a few words: "sound", or what went wrong and in how many of the trials; leaps are of the loss of a step,
        by how many times that at the start."""
        n = len(self.trials)
        if self.broken:
            first = min(t.broken for t in self.trials if t.broken is not None)
            return f"broke in {self.broken} of {n}, step {first}"
        worst = max((t.worst for t in self.sound), default=math.nan)
        if worst > WORST:
            return f"leaps, x {worst:.2g}"
        loose = sum(not t.held for t in self.sound)
        return f"rose in {loose} of {n}" if loose else "sound"


@dataclass(frozen=True)
class Prescription(Plain):
    """What was tried, what it did, and what to change, as plain data; it prints, draws and saves itself.

    verdict:   two or three plain sentences.
    diagnosis: what the candidates were chosen from.      nothing: the trials without any change; None if none were run.
    outcomes:  those of the candidates, in the order in which they were chosen.
    steps, seeds: of each trial.     advice: findings that no remedy here can cure, with what to do about them.
    notes:     what else should be known of the trials.
    """

    verdict: str
    diagnosis: Diagnosis
    nothing: Outcome | None
    outcomes: tuple[Outcome, ...]
    steps: int
    seeds: tuple[int, ...]
    winner: Candidate | None = None
    advice: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def code(self) -> str:
        """The winner's change, to be pasted; "" where nothing is to be changed."""
        return "" if self.winner is None else self.winner.code()

    def __str__(self) -> str:
        lines = [self.verdict]
        if self.nothing is not None:
            rows = [COLUMNS, *(row(o, self.winner) for o in (self.nothing, *self.outcomes))]
            widths = [max(len(r[k]) for r in rows) for k in range(len(COLUMNS))]
            lines += [
                "",
                f"{len(self.seeds)} seeds, {self.steps} steps each; the loss is that of batches held out",
            ]
            lines += ["  ".join(v.ljust(w) for v, w in zip(r, widths, strict=True)).rstrip() for r in rows]
        tried = [o for o in self.outcomes if o.candidate.reason]
        if tried:
            lines += ["", *(f"{o.candidate.name}: {o.candidate.reason}" for o in tried)]
        lines += [f"could not be run: {o.candidate.name}: {o.failed}" for o in self.outcomes if o.failed]
        lines += [f"besides: {a}" for a in self.advice]
        lines += [f"note: {n}" for n in self.notes]
        if self.winner is not None:
            lines += ["", "The change:", "", *(f"    {line}".rstrip() for line in self.code.splitlines())]
        return "\n".join(lines)

    def plot(self, ax: Any = None) -> Any:
        """Draws the loss of the batches by step, the median over seeds, into matplotlib's axes, new ones if None; gives
        the axes.

        Raises ThroughtimeError, with the command that installs it, where new axes need matplotlib and it is missing.
        """
        curves = {}
        for o in [] if self.nothing is None else [self.nothing, *self.outcomes]:
            runs = [t.losses for t in o.trials if t.losses]
            steps = range(max((len(r) for r in runs), default=0))
            if steps:
                curves[o.candidate.name] = [statistics.median(r[n] for r in runs if n < len(r)) for n in steps]
        return drawing.lines(curves, ax, xlabel="step", ylabel="loss of the batch, median over seeds")

    def _repr_html_(self) -> str:
        """For notebooks: the verdict, the table, the code; one piece of HTML, no scripts."""
        table = ""
        if self.nothing is not None:
            head = "".join(f"<th>{html.escape(c)}</th>" for c in COLUMNS)
            body = "".join(
                "<tr>" + "".join(f"<td>{html.escape(v)}</td>" for v in row(o, self.winner)) + "</tr>"
                for o in (self.nothing, *self.outcomes)
            )
            table = f'<table style="text-align:left"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        code = f"<pre>{html.escape(self.code)}</pre>" if self.winner is not None else ""
        return f"<div><p><b>{html.escape(self.verdict)}</b></p>{table}{code}</div>"


COLUMNS = ("", "gradient horizon", "loss (over the seeds)", "of nothing's (95 %)", "stability", "time")


def row(o: Outcome, winner: Candidate | None) -> tuple[str, ...]:
    """One line of the table: before and after the training."""
    name = f"{'>' if o.candidate == winner else ' '} {o.candidate.name}"
    if o.failed:
        return (name, "-", "-", "-", "not run", "-")
    horizon = f"{_horizons(o.horizon(0))} -> {_horizons(o.horizon(1))}"
    loss = f"{_number(o.start)} -> {_number(o.end)}" + (f" ({_span(o.end_range)})" if o.sound else "")
    against = "-"
    if o.candidate.remedies and not math.isnan(o.against):
        against = f"{'x ' * o.factor}{o.against:.2g} ({_span(o.against_interval)})"
    return (name, horizon, loss, against, o.stability, f"x {o.cost:.2g}")


def _number(v: float) -> str:
    return "none" if math.isinf(v) else f"{v:.3g}"


def _span(span: Span) -> str:
    return "-" if math.isinf(span[0]) else f"{span[0]:.2g} to {span[1]:.2g}"


def _horizons(found: tuple[Horizon, Horizon] | None) -> str:
    if found is None:
        return "-"
    low, high = found
    ends = [f"{h.steps}{'+' * h.at_least}" for h in (low, high)]
    return ends[0] if low == high else "..".join(ends)
