"""The share of each parameter's gradient that comes from each lag, loss step, past step and unit; and the totals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from throughtime.errors import FlowError
from throughtime.flow.entering import Entering, loss_steps
from throughtime.flow.parameter_parts import Block, Parameter, PartsOf, parameters
from throughtime.flow.recurrence import Recurrence
from throughtime.flow.sent import send
from throughtime.flow.shares_norms import PartNorms, check_memory
from throughtime.flow.shares_result import ParameterShares, Parts, Shares
from throughtime.flow.steps import StepRecurrence


def totals(recurrence: Recurrence | StepRecurrence, entering: Entering | Tensor) -> dict[str, Tensor]:
    """The total gradient dL/ds_k = sum_t dL_t/ds_k of every state at every step, exact.

    dL/dh_k and dL/dc_k along all paths, each [T, B, H] float64 by the state's name, and for one of our cells
    under "z" dL/dz_k, the net inputs of all gates side by side [T, B, C * H] (Werbos 1990).

    entering: what enters from outside, or the gradient dL/dy [T, B, P] of the recurrence's output.
    """
    whole = _entering(recurrence, entering).sum()
    if isinstance(recurrence, Recurrence):
        values = send(recurrence, whole, want_values=True).values
        assert values is not None
        return {name: value[0] for name, value in values.items()}
    found: dict[str, dict[int, Tensor]] = {}
    for step in recurrence.follow(whole):
        for name, value in step.states.items():
            found.setdefault(name, {})[step.k] = value[0]
    return {name: torch.stack([by_step[k] for k in sorted(by_step)]) for name, by_step in found.items()}


def shares(
    recurrence: Recurrence | StepRecurrence,
    entering: Entering | Tensor,
    *,
    norms: bool = True,
    anchors: int | None = None,
    samples: int | None = None,
    seed: int = 0,
) -> Shares:
    """Takes each parameter's gradient apart by lag, loss step, past step and unit; the parts add up to it.

        dL/dU = sum_t sum_{k<=t} delta_{t,k} h_{k-1}^T     dL/dW = ... x_k^T     dL/db = ... 1      (Werbos 1990)

    A contribution needs no part multiplied out: <delta v^T, G> = delta . (G v). A norm by lag or loss step does; with
    norms=False these are left out, and little memory is needed.

    entering: what enters from outside, or the gradient dL/dy [T, B, P] of the recurrence's output.
    anchors:  follow this many loss steps only, drawn without replacement with `seed` from those where a loss enters;
              samples: this many sequences of the batch. The gradient, its shares by past step and by unit are exact
              all the same; the rest are unbiased estimates, with the standard error of a sample from a finite
              population beside them, and have no norms.

    Raises FlowError where no gradient enters, where it or the recurrence holds NaN, and for sizes that do not fit.
    """
    entering = _entering(recurrence, entering)
    if entering.nothing:
        raise FlowError("no gradient enters this recurrence: the loss does not depend on it")
    whole = _Whole(recurrence, entering)
    if anchors is None and samples is None:
        found = _Apart(recurrence, entering, whole, norms).run()
        return _result(recurrence, whole, found, None)
    if anchors is not None and samples is not None:
        raise FlowError("choose anchors or samples, not both: the error of one would hide that of the other")
    generator = torch.Generator().manual_seed(seed)
    T, B = whole.steps, whole.batch
    if anchors is not None:
        steps = loss_steps(entering, T)
        n = _size("anchors", anchors, len(steps), "steps where a loss enters")
        rows = sorted(steps[i] for i in torch.randperm(len(steps), generator=generator)[:n].tolist())
        found = _Apart(recurrence, entering.at(rows), whole, False).run()
        return _result(recurrence, whole, found, f"{n} of {len(steps)} loss steps", rows=rows, of=len(steps))
    assert samples is not None
    if isinstance(recurrence, StepRecurrence):
        raise FlowError("the batch of a module of one's own cannot be taken apart; use anchors, or run a smaller batch")
    n = _size("samples", samples, B, "sequences of the batch")
    index = torch.randperm(B, generator=generator)[:n].sort().values
    some = replace(
        recurrence,
        x=recurrence.x[:, index],
        states=None if recurrence.states is None else [s[index] for s in recurrence.states],
        lengths=None if recurrence.lengths is None else recurrence.lengths[index],
    )
    found = _Apart(some, entering.samples(index), whole, False).run()
    return _result(recurrence, whole, found, f"{n} of {B} sequences", of=B)


def _size(what: str, n: int, most: int, of: str) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or n < 2:
        raise FlowError(f"{what} must be a whole number of at least 2, for one alone has no error bar; came {n!r}")
    if most < 2:
        raise FlowError(f"there are only {most} {of}; leave {what} out, the whole is small enough")
    return min(n, most)


def _entering(recurrence: Recurrence | StepRecurrence, entering: Entering | Tensor) -> Entering:
    if isinstance(entering, Tensor):
        want = tuple(recurrence.sequences[0].shape)
        if tuple(entering.shape) != want:
            raise FlowError(f"the gradient dL/dy must be shaped as the output, {want}; came {tuple(entering.shape)}")
        entering = Entering([entering, *[None] * (len(recurrence.sequences) - 1)])
    given = [*entering.direct, *(entering.above or ())]
    if any(v is not None and not bool(v.isfinite().all()) for v in given):
        raise FlowError("the gradient that enters the recurrence holds NaN or infinite numbers")
    return entering


# --- one pass for the whole gradient, one for its parts --------------------------------------------------------------

_Blocks = dict[str, list[Block]]


def _steps(recurrence: Recurrence | StepRecurrence, entering: Entering) -> Iterator[tuple[int, list[int], _Blocks]]:
    """k, the loss steps, and the blocks of every parameter's gradient, from the last step to the first."""
    if isinstance(recurrence, Recurrence):
        parts = PartsOf(recurrence)
        for step in recurrence.follow(entering):
            yield step.k, step.rows, parts(step)
        return
    one = torch.ones(1, 1, dtype=torch.float64)
    for own in recurrence.follow(entering, with_parameters=True):
        flat = {n: v.flatten(1)[:, None] for n, v in own.parameters.items()}
        yield own.k, own.rows, {n: [Block(0, v, one.to(v))] for n, v in flat.items()}


class _Whole:
    """Every parameter's gradient G, and its parts by past step, by one pass with all losses together."""

    def __init__(self, recurrence: Recurrence | StepRecurrence, entering: Entering):
        self.list: list[Parameter]
        if isinstance(recurrence, Recurrence):
            self.list = parameters(recurrence)
            self.batch = recurrence.x.shape[1]
        else:
            self.list = [Parameter(n, tuple(v.shape), 0, (v.numel(), 1)) for n, v in recurrence.parameters.items()]
            self.batch = 1
        like = recurrence.sequences[0]
        self.steps = T = like.shape[0]
        self.G = {p.name: like.new_zeros(p.flat) for p in self.list}
        self.past_norm = {p.name: like.new_zeros(T) for p in self.list}
        self.past = {p.name: like.new_zeros(T) for p in self.list}
        kept = []
        for k, _, blocks in _steps(recurrence, entering.sum()):
            kept.append((k, blocks))
            for p in self.list:
                part = torch.zeros_like(self.G[p.name])
                for b in blocks[p.name]:
                    part[b.start : b.start + b.left.shape[-1]] += b.left[0].mT @ b.right
                self.G[p.name] += part
                self.past_norm[p.name][k] = part.norm()
        self.square = {n: G.square().sum() for n, G in self.G.items()}
        for k, blocks in kept:
            for p in self.list:
                along = sum(_along(b, self.G[p.name]).sum() for b in blocks[p.name])
                self.past[p.name][k] = along / self.square[p.name]


def _along(b: Block, G: Tensor) -> Tensor:
    """<left right^T, G> row by row of the parameter: [rows, B, M]."""
    return b.left * (b.right @ G[b.start : b.start + b.left.shape[-1]].mT)


@dataclass
class _Found:
    lags: Tensor  # what the indices of the lag dimension stand for
    pairs: dict[str, Tensor]  # [T, T]
    lag_sample: dict[str, Tensor]  # [lags, B]
    loss_sample: dict[str, Tensor]  # [T, B]
    lag_unit: dict[str, Tensor]  # [lags, units]
    lag_norm: dict[str, Tensor] | None = None
    loss_norm: dict[str, Tensor] | None = None


class _Apart:
    """Follows every loss step alone and sorts what each adds to each parameter's gradient."""

    def __init__(self, recurrence: Any, entering: Entering, whole: _Whole, norms: bool):
        self.recurrence, self.entering, self.whole = recurrence, entering, whole
        T, B = whole.steps, (recurrence.x.shape[1] if isinstance(recurrence, Recurrence) else 1)
        self.T, self.sign = T, (-1 if recurrence.reverse else 1)
        # In a layer under a bidirectional one a loss reaches later steps too: there are lags below 0.
        self.first = -(T - 1) if _reaches_later(entering, self.sign) else 0
        L = T - self.first
        like = recurrence.sequences[0]
        names = {p.name: p for p in whole.list}
        self.found = _Found(
            torch.arange(self.first, T),
            {n: like.new_zeros(T, T) for n in names},
            {n: like.new_zeros(L, B) for n in names},
            {n: like.new_zeros(T, B) for n in names},
            {n: like.new_zeros(L, p.units) for n, p in names.items()},
        )
        self.norms = None
        if norms:
            check_memory(L + T, sum(p.flat[0] * p.flat[1] for p in whole.list))
            self.norms = {n: PartNorms(like, T, L, p.flat) for n, p in names.items()}

    def run(self) -> _Found:
        f = self.found
        for k, rows, blocks in _steps(self.recurrence, self.entering):
            if not rows:
                continue
            t = torch.tensor(rows, device=f.lags.device)
            lag = self.sign * (t - k) - self.first
            there = lag >= 0  # rows that cannot reach this step hold zeros
            if not bool(there.any()):
                continue
            t, lag = t[there], lag[there]
            for p in self.whole.list:
                for b in blocks[p.name]:
                    b = b._replace(left=b.left[there])
                    self._add(p, b, k, t, lag)
        if self.norms is not None:
            f.lag_norm = {n: v.close()[0] for n, v in self.norms.items()}
            f.loss_norm = {n: v.close()[1] for n, v in self.norms.items()}
        return f

    def _add(self, p: Parameter, b: Block, k: int, t: Tensor, lag: Tensor) -> None:
        f = self.found
        along = _along(b, self.whole.G[p.name]) / self.whole.square[p.name]
        by_sample = along.sum(-1)
        f.pairs[p.name][t, k] += by_sample.sum(-1)
        f.lag_sample[p.name][lag] += by_sample
        f.loss_sample[p.name][t] += by_sample
        if p.units:
            # A block begins at a whole number of units, so its row m belongs to unit m mod units.
            f.lag_unit[p.name][lag] += along.sum(1).view(len(t), -1, p.units).sum(1)
        if self.norms is not None:
            self.norms[p.name].add(b, t, lag)


def _reaches_later(entering: Entering, sign: int) -> bool:
    for v in entering.above or ():
        if v is None or entering.summed:
            continue
        nonzero = (v != 0).flatten(2).any(2)  # [rows, T]
        t = torch.arange(v.shape[0]) if entering.rows is None else torch.tensor(entering.rows)
        lag = sign * (t[:, None] - torch.arange(v.shape[1]))
        if bool((nonzero.cpu() & (lag < 0)).any()):
            return True
    return False


# --- the result ------------------------------------------------------------------------------------------------------


def _result(
    recurrence: Any, whole: _Whole, f: _Found, estimated: str | None, rows: list[int] | None = None, of: int = 0
) -> Shares:
    T, found = whole.steps, {}
    for p in whole.list:
        n, G = p.name, whole.G[p.name]
        scale, lag_error, loss_error = 1.0, None, None
        loss_at, loss = torch.arange(T), f.loss_sample[n].sum(1)
        if rows is not None:
            scale, pairs = of / len(rows), f.pairs[n][rows]
            sign = -1 if recurrence.reverse else 1
            each = G.new_zeros(len(f.lags), len(rows))
            for i, t in enumerate(rows):
                lag = sign * (t - torch.arange(T)) - int(f.lags[0])
                each[lag[lag >= 0], i] = pairs[i][lag >= 0]
            lag_error = _standard_error(each, of)
            loss_at, loss = torch.tensor(rows), loss[rows]
        elif estimated:
            scale = of / f.lag_sample[n].shape[1]
            lag_error, loss_error = (_standard_error(v[n], of) for v in (f.lag_sample, f.loss_sample))
            loss = loss * scale
        lag_norm = None if f.lag_norm is None else f.lag_norm[n]
        loss_norm = None if f.loss_norm is None else f.loss_norm[n]
        by_unit = None
        if p.units:
            size = G.square().sum(1).view(-1, p.units).sum(0)
            by_unit = Parts(torch.arange(p.units), size / whole.square[n], size.sqrt())
        found[n] = ParameterShares(
            G.reshape(p.shape),
            Parts(f.lags, f.lag_sample[n].sum(1) * scale, lag_norm, lag_error),
            Parts(loss_at, loss, loss_norm, loss_error),
            Parts(torch.arange(T), whole.past[n], whole.past_norm[n]),
            by_unit,
            f.lag_unit[n] * scale if p.units else None,
            f.pairs[n] if rows is not None else f.pairs[n] * scale,
        )
    name = recurrence.cell.name if isinstance(recurrence, Recurrence) else recurrence.kind
    return Shares(found, name, recurrence.layer, recurrence.reverse, estimated)


def _standard_error(each: Tensor, of: int) -> Tensor:
    """Of the total over `of` units, from the values [., n] of n of them drawn without replacement (Cochran 1977)."""
    n = each.shape[1]
    return of * (each.var(1, correction=1) * (1 - n / of) / n).sqrt()
