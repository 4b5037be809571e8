"""What the data ask for: the data horizon of the batches of a training loop, within a bound on the work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from throughtime.diagnosis.added import added
from throughtime.diagnosis.chance import BLOCKS
from throughtime.diagnosis.dependence import Dependence, as_data, dependence
from throughtime.diagnosis.kernel import NODES, SYMBOLS
from throughtime.diagnosis.lagged import MOST, Whole, kernel_dependence
from throughtime.diagnosis.pieces import pieces
from throughtime.diagnosis.pooled import pooled_dependence
from throughtime.diagnosis.sequences import Sequences, Unseen, symbols
from throughtime.errors import DataError

SHUFFLES, RESAMPLES = 30, 100
FRACTION = 0.01  # of the largest dependence, as of the gradient at lag 0: less does not count as asked for
COST = 3e10  # multiplications that the data horizon may take: some seconds on one core
SERIES = 256  # the largest lag looked for in one long series
TOGETHER = 32  # lags at which old inputs are looked at together, at most
NEAR = 16  # lags that are measured one by one in any case


class Asked(NamedTuple):
    """What the data ask for: by pairs of one input and the target, by all old inputs together, and notes on both; and
    the sequences that it was measured on, or the one long series, inputs and targets [n] or [n, D]."""

    pairs: Dependence
    together: Dependence | None = None
    notes: tuple[str, ...] = ()
    data: Sequences | None = None
    series: tuple[Tensor, Tensor] | None = None

    def added(self, near: int, far: int) -> float | None:
        """What inputs up to `far` steps back add to those up to `near` back (`throughtime.diagnosis.added`); None where
        that cannot be said. In long reaches few targets have such a past, so that half as far is tried as well. A
        series is cut into pieces for each reach."""
        if self.series is not None:
            cut = {d: pieces(*self.series, d) for d in {far, (near + far + 1) // 2} if d > near}
            found = [added(of, near, d) for d, of in cut.items() if of is not None]
        elif self.data is not None:
            half = self.data.x.shape[1] // 2
            there = [d for d, b in zip(self.pairs.lags, self.pairs.beyond(), strict=True) if b and near < d <= half]
            found = [added(self.data, near, d) for d in {far, *there[-1:]} if d > near]
        else:
            return None
        return max((v for v in found if v is not None), default=None)

    def folded(self) -> Asked:
        """The same for a label that a layer reads from both ends: lags count from the nearer one."""
        if self.data is None or self.data.form != "label":
            return self
        T, p = self.data.x.shape[1], self.pairs
        limits = p.limits or (p.threshold,) * len(p.lags)
        best: dict[int, tuple[float, float]] = {}
        for d, size, limit in zip(p.lags, p.size, limits, strict=True):
            d = min(d, T - 1 - d)
            best[d] = max(best.get(d, (size, limit)), (size, limit), key=lambda v: v[0] - v[1])
        lags = tuple(sorted(best))
        of = replace(
            p, lags=lags, size=tuple(best[d][0] for d in lags), limits=tuple(best[d][1] for d in lags), interval=None
        )
        note = "the layer reads the sequences from both ends, so lags are counted from the nearer one"
        return Asked(of, None, (*self.notes, note))


def measure_data(batches: Sequence[Sequences], seed: int = 0) -> Asked:
    """The dependence of the targets on the inputs over all lags of the sequences.

    With fewer than 20 sequences that have a target at each step they are put end to end. Where an encoder hands on its
    last state (`Sequences.form`), lags are counted back from its last step, and all targets together are the label.
    Raises Unseen where the data are too few or of no use.
    """
    first = batches[0]
    same = [b for b in batches if b.x.shape[1:] == first.x.shape[1:] and b.y.shape[1:] == first.y.shape[1:]]
    x, y = torch.cat([b.x for b in same]), torch.cat([b.y for b in same])
    N, T = x.shape[:2]
    notes: list[str] = []
    far = T - 1
    if N < BLOCKS:
        if first.form != "each":
            raise Unseen(f"{N} sequences with a label are too few to see a dependency, at least {BLOCKS} are needed")
        if not y.is_floating_point() and bool((y < 0).any()):
            raise Unseen(f"{N} sequences with targets left out are too few, at least {BLOCKS} are needed")
        x, y = x.flatten(0, 1), y.flatten(0, 1)
        most = (N * T - SHUFFLES) // 5  # the baseline moves the inputs out of reach of every lag
        if most < 1 or N * T - most < 100:
            raise Unseen(f"{N * T} steps are too few to see a dependency; give more batches")
        notes.append(
            f"the data horizon: {N} sequences were put end to end, for fewer than {BLOCKS} cannot be exchanged"
        )
        if most < far:
            notes.append(f"the data horizon: {N * T} steps in all show lags up to {most} only")
            far = most
    elif first.form == "each":
        steps = torch.arange(T) if y.is_floating_point() else (y >= 0).all(0).nonzero()[:, 0]
        if not len(steps):
            raise Unseen("there is no step at which all sequences have a target")
        far = min(far, int(steps[-1]))
    handed = first.form == "handed"
    lags = _lags(far, _width(x) * _width(y) * (y.shape[1] if handed else 1), N if handed else N * T)
    if len(lags) < far + 1:
        notes.append(f"the data horizon was looked for at {len(lags)} of {far + 1} lags, for the time it takes")
    try:
        together = None
        if handed:
            return Asked(_of_whole(x, y, lags, seed), None, tuple(notes))
        pairs = dependence(
            x, y, lags, shuffles=SHUFFLES, resamples=RESAMPLES, fraction=FRACTION, seed=seed,
            baseline="shift" if N < BLOCKS else None,
        )  # fmt: skip
        if N >= BLOCKS:
            few = sorted({round(k * far / (TOGETHER - 1)) for k in range(TOGETHER)})
            together = pooled_dependence(x, y, few, shuffles=SHUFFLES, seed=seed)
    except DataError as error:
        raise Unseen(str(error)) from None
    if N < BLOCKS:
        return Asked(_told(pairs), together, tuple(notes), series=(x, y))
    return Asked(pairs, together, tuple(notes), Sequences(x, y, first.form))


def measure_given(inputs: Any, targets: Any) -> Asked:
    """The same for data that the user hands over, in a form that `dependence` takes. Raises DataError where it is none
    of them, Unseen where they are too few."""
    x, y = as_data("inputs", inputs), as_data("targets", targets)
    x = symbols(x) if x.is_floating_point() and x.dim() > 1 else x
    if x.dim() > 1 + x.is_floating_point():
        y = symbols(y) if y.is_floating_point() and y.dim() > 1 else y
        each = y.dim() - y.is_floating_point() == 2
        if len(x) != len(y) or (each and x.shape[1] != y.shape[1]):
            raise DataError(
                f"inputs {list(x.shape)} and targets {list(y.shape)} are not of as many sequences and steps"
            )
        return measure_data([Sequences(x, y, "each" if each else "label")])
    real = x.is_floating_point() or y.is_floating_point()
    far = min(SERIES, (len(x) - SHUFFLES) // 5)
    if far < 1 or len(x) - far < 100:
        raise Unseen(f"{len(x)} steps are too few to see a dependency")
    lags = _lags(far, _width(x if x.dim() > 1 or not real else x[:, None]) ** 2, len(x))
    pairs = dependence(
        x, y, lags, shuffles=SHUFFLES, resamples=RESAMPLES, fraction=FRACTION, baseline="shift"
    )  # fmt: skip
    return Asked(_told(pairs), series=(columns(x), columns(y)))


def _told(pairs: Dependence) -> Dependence:
    """What was found in one series; Unseen where nothing was, but nothing could be: it depends on itself everywhere."""
    if pairs.notes and pairs.horizon().steps < 0:
        raise Unseen(pairs.notes[0])
    return pairs


def columns(v: Tensor) -> Tensor:
    """A series of real numbers [n] as [n, 1]; others as they are."""
    return v[:, None] if v.is_floating_point() and v.dim() == 1 else v


def _of_whole(x: Tensor, y: Tensor, lags: list[int], seed: int) -> Dependence:
    """The dependence of all targets y [N, T'(, K)] of a sequence together on its input d steps before its end."""
    pairs = Whole(x, y, tuple(lags), seed)
    found = kernel_dependence(pairs, tuple(lags), SHUFFLES, RESAMPLES, torch.Generator().manual_seed(seed), FRACTION)
    return Dependence(tuple(lags), found.size, max(found.limits), "of 1", found.interval, found.notes)


def _width(v: Tensor) -> int:
    """How many features `kernel.features` will make of it."""
    if not v.is_floating_point():
        return min(SYMBOLS, len(v.unique()))
    D = v.shape[-1]
    return 2 * (NODES if D == 1 else 16 if D <= 3 else 32)


def _lags(far: int, features: int, pairs: int) -> list[int]:
    """All lags, or, where that would take long, all near ones and farther ones ever farther apart."""
    each = (1 + SHUFFLES) * features * (min(MOST, pairs) + BLOCKS * RESAMPLES)
    most = max(2 * NEAR, int(COST / each))
    if far + 1 <= most:
        return list(range(far + 1))
    ratio = (far / NEAR) ** (1 / (most - NEAR))
    lags = {*range(NEAR), far}
    at = float(NEAR)
    while at < far:
        lags.add(round(at))
        at = max(at * ratio, at + 1)
    return sorted(lags)
