"""What the data ask for: how much a target depends on the input some steps back, by lag, against chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from throughtime.diagnosis.chance import (
    ALPHA,
    BLOCKS,
    RESAMPLED_ALPHA,
    between,
    farthest,
    interval,
    resampled_horizons,
    resampling,
    upper_chi,
)
from throughtime.diagnosis.information import information
from throughtime.diagnosis.lagged import Labels, Pairs, Series, kernel_dependence
from throughtime.errors import DataError
from throughtime.flow import Horizon, drawing
from throughtime.plain import Plain


@dataclass(frozen=True)
class Dependence(Plain):
    """How much a target depends on the input some steps before it, by lag, as plain data.

    lags:      the lags d measured, in steps, ascending.
    size:      for each lag the dependence of y_t on x_{t-d}, less what the same estimate gives by chance, in `unit`.
    threshold: what chance exceeds at any of the lags with a probability of 1 % only, in `unit`.
    unit:      "bits" of mutual information for symbols; "of 1" for real numbers (see `dependence`).
    interval:  the 95 % interval of the horizon, from resampled blocks of the data; None if not asked for.
    notes:     what should be known before this is believed.
    limits:    the threshold lag by lag, where far lags have fewer pairs and so more chance; `threshold` is the largest
               of them. None where it is the same for all.

    Pairwise: it sees a dependence on one earlier input at a time, and that cuts both ways. What only several inputs
    say together (a parity, a syntax) it does not see: the true horizon can lie farther back. And what a nearer input
    says already is counted again: in a Markov chain every lag depends on every other, and the last step is all that
    need be remembered.
    """

    lags: tuple[int, ...]
    size: tuple[float, ...]
    threshold: float
    unit: str = "bits"
    interval: tuple[Horizon, Horizon] | None = None
    notes: tuple[str, ...] = ()
    limits: tuple[float, ...] | None = None

    def beyond(self) -> tuple[bool, ...]:
        """For each lag whether its dependence exceeds chance."""
        limits = self.limits or (self.threshold,) * len(self.lags)
        return tuple(s > limit for s, limit in zip(self.size, limits, strict=True))

    @property
    def bits(self) -> tuple[float, ...]:
        """The dependence in bits; raises DataError where it was not measured in bits."""
        if self.unit != "bits":
            raise DataError(f"this dependence is between real numbers and has no bits; read .size ({self.unit})")
        return self.size

    def horizon(self) -> Horizon:
        """The data horizon: the largest lag, in steps, at which the dependence exceeds chance; `at_least` if it is
        the largest lag measured. Horizon(-1, False) if there is no dependence at any lag, not even at lag 0."""
        beyond = [d for d, b in zip(self.lags, self.beyond(), strict=True) if b]
        return Horizon(beyond[-1], beyond[-1] == self.lags[-1]) if beyond else Horizon(-1, False)

    def plot(self, ax: Any = None) -> Any:
        """Draws the dependence by lag, and what chance exceeds, with matplotlib; gives the axes.

        ax: where to draw; None for a new figure. Raises ThroughtimeError where matplotlib is missing.
        """
        curves = {"dependence": self.size, "chance": self.limits or (self.threshold,) * len(self.lags)}
        return drawing.lines(curves, ax, self.lags, xlabel="lag (steps)", ylabel=f"dependence, {self.unit}")

    def __str__(self) -> str:
        far = self.horizon()
        lines = [f"Dependence of the target on the input, by lag ({self.unit}; chance exceeds {self.threshold:.2g})"]
        spread = f" (95 %: {between(self.interval)})" if self.interval else ""
        lines.append("  no lag beyond chance" if far.steps < 0 else f"  horizon {far}{spread}")
        most = max(range(len(self.lags)), key=lambda k: self.size[k])
        ends = {0, most, len(self.lags) - 1, *(k for k, d in enumerate(self.lags) if d == far.steps)}
        beyond = self.beyond()
        lines += [f"  lag {self.lags[k]:<5} {self.size[k]:9.3g}{' *' * beyond[k]}" for k in sorted(ends)]
        return "\n".join([*lines, *(f"  note: {n}" for n in self.notes)])


def dependence(
    inputs: Sequence[int] | Tensor,
    targets: Sequence[int] | Tensor,
    lags: Sequence[int],
    *,
    shuffles: int = 50,
    seed: int = 0,
    resamples: int = 100,
    fraction: float = 0.0,
    baseline: str | None = None,
) -> Dependence:
    """Measures how much targets y_t depend on inputs x_{t-d}, for each lag d, linearly or not.

    Whole numbers are symbols, real numbers are measurements. The shapes, T steps and N sequences:

        inputs                        targets
        symbols [T], or real [T], [T, D]         symbols [T], or real [T], [T, K]       one series
        symbols [N, T], or real [N, T, D]        symbols [N, T], or real [N, T, K]      sequences, a target at each step
                                                 (symbols below 0: no target there)
        symbols [N, T], or real [N, T, D]        symbols [N], or real [N], [N, K]       sequences, a label at the end

    One series of symbols to symbols is measured in bits, counted, less what is counted on shuffled inputs, which is too
    large by itself (Miller 1955):

        I(x; y) = sum_{a,b} p(a,b) log2( p(a,b) / (p(a) p(b)) )

    All else by the covariance of features, whose products are a kernel (see `kernel.features`): it is 0 only if there
    is no relation, whatever its form, and 1 if x determines y up to rotation and any increasing map of each dimension
    (Gretton 2005, normalised as by Cortes 2012; distance correlation, Szekely 2007, is one of this kind, but costs n^2
    where this costs n):

        ||Cov(phi(x), psi(y))||^2 / (||Cov(phi(x), phi(x))|| ||Cov(psi(y), psi(y))||),   Frobenius norms

    At most 8192 pairs are used for it, evenly spaced, of one label a sequence all. A dependence that is there in few of
    the sequences only (at any one lag of the adding task, one in T / 2) needs thousands of them to be seen.

    A lag counts as dependent if it lies so far above `shuffles` draws from a baseline that this happens by chance at
    one of all lags with a probability of 1 %.

    fraction: what is smaller than this share of the largest does not count either. In much data the faintest relation
              is beyond chance; to ask how far a gradient must reach, 0.01, its own fraction, is the measure.
    baseline: "shuffle" permutes the inputs. That is right only if they, or the targets, have no memory of their own:
              two slow series look alike by chance more often than shuffled ones. "shift" moves the inputs by large
              random distances in time, round the end, which keeps the memory of both (Chatfield 2003 on why it
              matters); it needs T > 4 * the largest lag, and finds nothing in a strictly periodic series, which depends
              on itself at every shift. None: "shuffle" for symbols to symbols, "shift" for any other one series. With
              sequences whole sequences are exchanged, which needs neither: prefer them where there are 20 or more.
    resamples: bootstrap resamples for the 95 % interval, of 20 blocks (stretches, or groups of sequences); 0 for none.

    For a language model y_t = x_{t+1}. Raises DataError for shapes that do not match, too few steps or sequences for
    the lags, and numbers that are NaN or all the same.
    """
    x, y = as_data("inputs", inputs), as_data("targets", targets)
    lags = tuple(sorted({int(d) for d in lags}))
    if not lags or lags[0] < 0:
        raise DataError(f"lags must be whole numbers >= 0, at least one; came {lags}")
    if shuffles < 5:
        raise DataError(f"at least 5 shuffles are needed to know what chance gives; came {shuffles}")
    if not 0 <= fraction < 1:
        raise DataError(f"fraction must lie in [0, 1), a share of the largest dependence; came {fraction}")
    if baseline not in (None, "shuffle", "shift"):
        raise DataError(f'baseline must be "shuffle", "shift" or None; came {baseline!r}')
    generator = torch.Generator().manual_seed(seed)
    if x.dim() == 1 and y.dim() == 1 and not y.is_floating_point() and not x.is_floating_point():
        x, y = (torch.unique(v, return_inverse=True)[1] for v in (x, y))  # only symbols that occur take room
        return _symbols(x, y, lags, shuffles, resamples, fraction, baseline or "shuffle", generator)
    pairs = _pairs(x, y, lags, baseline, seed)
    found = kernel_dependence(pairs, lags, shuffles, resamples, generator, fraction)
    limits = found.limits if len(set(found.limits)) > 1 else None
    return Dependence(lags, found.size, max(found.limits), "of 1", found.interval, found.notes, limits)


def _symbols(
    x: Tensor, y: Tensor, lags: tuple[int, ...], shuffles: int, resamples: int, fraction: float, baseline: str,
    gen: torch.Generator,
) -> Dependence:  # fmt: skip
    T = _one_length(x, y, lags)
    n = T - lags[-1]  # as few pairs as any lag has: chance is judged where it is largest
    if baseline == "shift":
        series = Series(x, y, lags)
        baselines = [x.roll(int(s))[:n] for s in series.shifts(shuffles, gen)]
    else:
        baselines = [x[torch.randperm(T, generator=gen)][:n] for _ in range(shuffles)]
    weights = resampling(resamples, BLOCKS, gen)
    null = torch.stack([information(v, y[:n], weights) for v in baselines])
    chance = null.mean(0)
    size = torch.stack([information(x[: T - d], y[d:], weights) for d in lags], 1) - chance[:, None]
    chances = upper_chi(null[:, 0], ALPHA / len(lags)) - chance[0]  # Bonferroni
    limit = chances.clamp(min=fraction * float(size[0].max().clamp(min=0)))
    point = int(farthest(size[0] > limit, lags))
    strict = upper_chi(null, RESAMPLED_ALPHA / len(lags)) - chance
    found = resampled_horizons(size, chances, strict[:, None], lags, fraction)
    span = interval(found, point, lags) if resamples else None
    return Dependence(lags, tuple(size[0].tolist()), limit.item(), "bits", span)


def as_data(name: str, v: Sequence[int] | Tensor) -> Tensor:
    """Symbols as int64 or real numbers as float64, on the CPU; raises DataError for what can be neither."""
    try:
        t = torch.as_tensor(v).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as err:
        raise DataError(f"{name} must be a tensor or a sequence of numbers ({err})") from None
    whole = not t.is_floating_point()
    fits = not t.is_complex() and t.numel() > 0 and 1 <= t.dim() <= (2 if whole else 3)
    if not fits or (whole and bool(t.min() < 0) and not (name == "targets" and t.dim() == 2)):
        raise DataError(
            f"{name} must be a sequence of whole numbers >= 0, symbols [T] or [N, T], or real numbers up to [N, T, D]; "
            f"came {t.dtype} {tuple(t.shape)}"
        )
    return t.long() if whole else t.double()


def _pairs(x: Tensor, y: Tensor, lags: tuple[int, ...], baseline: str | None, seed: int) -> Pairs:
    """The pairs (x_{t-d}, y_t) in their form: one series, or sequences."""
    came = f"inputs {list(x.shape)}, targets {list(y.shape)}"
    x, y = (v[:, None] if v.is_floating_point() and v.dim() == 1 else v for v in (x, y))
    if x.dim() == 1 + x.is_floating_point():
        _one_length(x, y, lags)
        if y.dim() > 1 + y.is_floating_point():
            raise DataError(f"inputs of one series need targets [T] or, of real numbers, [T, K]; came {came}")
        return Series(x, y, lags, baseline or "shift", seed)
    N, T = x.shape[:2]
    if y.shape[0] != N:
        raise DataError(f"these inputs are {N} sequences of {T} steps, and need {N} targets; came {came}")
    if y.is_floating_point() and y.dim() == 2 and y.shape[1] == T > 1:
        raise DataError(
            f"are the targets one number a step, or a label of {T} numbers? Give [N, T, 1] for the first, and fewer "
            f"columns for the second; came {came}"
        )
    if baseline == "shift":
        raise DataError('baseline="shift" is for one series; of sequences whole ones are exchanged')
    each = y.dim() - y.is_floating_point() == 2
    if each and y.shape[1] != T:
        raise DataError(f"inputs and targets must have one length; came {T} and {y.shape[1]} steps")
    return Labels(x, y, lags, each, seed)


def _one_length(x: Tensor, y: Tensor, lags: tuple[int, ...]) -> int:
    T = len(x)
    if len(y) != T:
        raise DataError(f"inputs and targets must have one length; came {T} and {len(y)}")
    if lags[-1] + 100 > T:
        raise DataError(f"{T} steps are too few for a lag of {lags[-1]}; at least 100 pairs are needed at each lag")
    return T
