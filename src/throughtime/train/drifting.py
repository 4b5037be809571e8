"""How a model drifts when it feeds on its own output: the same model on real data and on what it writes itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from throughtime.errors import ConfigError, NonFiniteError
from throughtime.flow import drawing
from throughtime.plain import Plain
from throughtime.train import checkpoint as checkpoints
from throughtime.train.data.prepare import prepare
from throughtime.train.feedback import Loop, loop_of
from throughtime.train.loop import load_from
from throughtime.train.model import SequenceModel
from throughtime.train.rundir import Run

_CLEAR = 3.0
"""Standard errors, beyond which a difference is called one."""


@dataclass(frozen=True)
class DriftOf(Plain):
    """One statistic at the steps since the loop was closed, in bins.

    open, closed [bins]: its mean on real data, and where the model reads what it wrote. error [bins]: the standard
    error of closed - open, over the sequences, which begin alike in both.
    """

    unit: str
    open: Tensor
    closed: Tensor
    error: Tensor

    @property
    def difference(self) -> Tensor:
        """[bins]: closed - open."""
        return self.closed - self.open


@dataclass(frozen=True)
class Drift(Plain):
    """What became of a model that read its own output, against the same model on real data.

    first, last [bins]: the steps since the loop was closed, 1 ... `length`, that a bin has. of: the statistics by name;
    state is the mean over units of ((h - mean) / deviation)^2, mean and deviation of each unit those on real data: 1
    there, larger where the state has gone to where data never bring it.
    """

    run: str
    checkpoint: str
    sequences: int
    context: int
    length: int
    seed: int
    first: tuple[int, ...]
    last: tuple[int, ...]
    of: dict[str, DriftOf]

    @property
    def drifted(self) -> dict[str, float]:
        """The statistics that are another in the last bin than on real data, by 3 standard errors: the difference."""
        found = {name: (float(d.difference[-1]), float(d.error[-1])) for name, d in self.of.items()}
        return {name: d for name, (d, error) in found.items() if abs(d) > _CLEAR * error}

    def plot(self, ax: Any = None, of: str | None = None) -> Any:
        """Draws one statistic on real data and on what the model wrote, in a band of two errors; gives the axes.

        of: its name; None for the first. ax: where to draw; None for a new figure. Raises ConfigError for a name that
        is not held, ThroughtimeError where matplotlib is missing.
        """
        name = next(iter(self.of)) if of is None else of
        if name not in self.of:
            raise ConfigError(f"there is no {name!r} here; there are {', '.join(self.of)}")
        d, at = self.of[name], [(a + b) / 2 for a, b in zip(self.first, self.last, strict=True)]
        label = f"{name}, {d.unit}"
        ax = drawing.lines({"open": d.open, "closed": d.closed}, ax, at, xlabel="steps since", ylabel=label)
        ax.fill_between(at, (d.closed - 2 * d.error).tolist(), (d.closed + 2 * d.error).tolist(), alpha=0.2)
        return ax

    def __str__(self) -> str:
        lines = [
            f"{self.run}, {self.checkpoint}: {self.sequences} continuations of {self.length} steps behind "
            f"{self.context} real ones, seed {self.seed}",
            "",
        ]
        spans = [str(a) if a == b else f"{a}-{b}" for a, b in zip(self.first, self.last, strict=True)]
        for name, d in self.of.items():
            lines.append(f"{name} ({d.unit})")
            lines.append(f"  {'steps':>10} {'open':>9} {'closed':>9} {'difference':>19}")
            rows = zip(spans, d.open.tolist(), d.closed.tolist(), d.difference.tolist(), d.error.tolist(), strict=True)
            lines += [f"  {s:>10} {o:9.3f} {c:9.3f} {x:+10.3f} ± {e:.3f}" for s, o, c, x, e in rows]
        words = [f"{name} by {x:+.3f} {self.of[name].unit}" for name, x in self.drifted.items()]
        where = f"steps {spans[-1]} after the loop was closed"
        lines += [
            "",
            f"drifts: {', '.join(words)}, {where}" if words else f"no drift beyond {_CLEAR:g} errors, {where}",
        ]
        return "\n".join(lines)


def drift(
    run_dir: str | Path,
    *,
    length: int = 256,
    context: int = 64,
    sequences: int = 64,
    seed: int = 0,
    part: str = "",
    checkpoint: str = "best",
) -> Drift:
    """Measure how a trained model drifts once it reads its own output (Braverman 2020 for the entropy of text).

    Stretches of held-out data are read for `context` steps; then once on, as they are (open loop), and once such that
    each next step is drawn from what the model says (closed loop), `length` steps each. Statistics of both are compared
    as a function of the steps since: those of `throughtime.train.feedback` for text, notes, and series that are
    forecast from themselves alone, and where the state is. Text is drawn at temperature 1.
    part: "valid" or "test"; without it the test part where there is one.
    Raises ConfigError for other kinds of runs and values that make no sense, DataError where too little is held out,
    NonFiniteError where the outputs are not finite.
    """
    for name, value in (("length", length), ("context", context), ("sequences", sequences)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed must be from 0 to 2**63 - 1, got {seed}")
    if part not in ("", "valid", "test"):
        raise ConfigError(f"part must be valid or test, got {part!r}")
    run = Run.open(Path(run_dir))
    model = load_from(run, checkpoint)
    data = prepare(run.config, run.schema)
    run.check_data(data.sha256)
    held = data.valid if part == "valid" or (not part and data.test is None) else data.test
    if held is None:
        raise ConfigError(f"{run.path} kept no part of its data for {part or 'validation'}; train one with one")
    loop = loop_of(run.schema, data, held, context + length + 1, sequences)
    opened = _follow(model, loop, context, length, None)
    closed = _follow(model, loop, context, length, Generator().manual_seed(seed))
    opened["state"], closed["state"] = _far(opened.pop("h"), closed.pop("h"))
    first, last = _bins(length)
    units = {**loop.units, "state": "squared deviations"}
    of = {name: _compare(unit, opened[name], closed[name], first, last) for name, unit in units.items()}
    stretches = loop.real.shape[1]
    name = checkpoints.find(run.checkpoints, checkpoint).name
    return Drift(str(run_dir), name, stretches, context, length, seed, tuple(first), tuple(last), of)


def _follow(
    model: SequenceModel, loop: Loop, context: int, length: int, generator: Generator | None
) -> dict[str, Tensor]:
    """Each statistic [length, S], and the states h [length, S, layers * H]; in a closed loop with a generator."""
    found: dict[str, list[Tensor]] = {"h": []}
    with torch.no_grad():
        outputs, state = model(loop.real[:context])
        before, said = loop.real[context - 1], outputs[-1]
        for n in range(length):
            if not bool(said.isfinite().all()):
                raise NonFiniteError("the model's output is not finite: its weights are broken; use another checkpoint")
            step = loop.real[context + n] if generator is None else loop.draw(said, generator)
            for name, value in loop.tell(said, before, step).items():
                found.setdefault(name, []).append(value.double())
            outputs, state = model(step.unsqueeze(0), state)
            before, said = step, outputs[-1]
            h = state if isinstance(state, Tensor) else state[0]
            found["h"].append(h.transpose(0, 1).flatten(1).double())
    return {name: torch.stack(values) for name, values in found.items()}


def _far(opened: Tensor, closed: Tensor) -> tuple[Tensor, Tensor]:
    """[length, S] each: how far the states on real data [length, S, H], and the others, are from those on real data."""
    mean, variance = opened.mean((0, 1)), opened.var((0, 1), unbiased=False)
    moving = variance > 1e-12 * mean.square()  # a unit that never moves has no scale
    if not bool(moving.any()):
        return torch.zeros_like(opened[..., 0]), torch.zeros_like(closed[..., 0])
    both = [((h - mean)[..., moving].square() / variance[moving]).mean(-1) for h in (opened, closed)]
    return both[0], both[1]


def _bins(length: int) -> tuple[list[int], list[int]]:
    """1, 2, 3-4, 5-8, ...: the first and the last step of each."""
    last = [2**k for k in range(length.bit_length()) if 2**k < length] + [length]
    return [1, *(n + 1 for n in last[:-1])], last


def _compare(unit: str, opened: Tensor, closed: Tensor, first: list[int], last: list[int]) -> DriftOf:
    columns: list[Any] = []
    for begin, end in zip(first, last, strict=True):
        a, b = opened[begin - 1 : end].mean(0), closed[begin - 1 : end].mean(0)
        columns.append((a.mean(), b.mean(), (b - a).std() / len(a) ** 0.5))
    return DriftOf(unit, *(torch.stack(column) for column in zip(*columns, strict=True)))
