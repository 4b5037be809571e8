"""diagnose(): what is wrong with a recurrent model, and whether it is the weights or the data."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from throughtime.diagnosis.asked import Asked, measure_data, measure_given
from throughtime.diagnosis.assemble import from_capture
from throughtime.diagnosis.audit_run import audit_run
from throughtime.diagnosis.batches import Batch, read_batches
from throughtime.diagnosis.dependence import Dependence
from throughtime.diagnosis.finding import Finding, Where
from throughtime.diagnosis.next_step import next_step
from throughtime.diagnosis.parts import parts
from throughtime.diagnosis.result import Diagnosis
from throughtime.diagnosis.sequences import Sequences, Unseen, axes_of, from_both_ends, see
from throughtime.diagnosis.untouched import untouched
from throughtime.diagnosis.use import Use
from throughtime.diagnosis.used import measure_use
from throughtime.errors import FlowError
from throughtime.flow import Capture, UpdateSizes, capture, norm_history
from throughtime.flow.capture import check_model

P = ParamSpec("P")
R = TypeVar("R")
_turn = threading.RLock()


def _one_at_a_time(f: Callable[P, R]) -> Callable[P, R]:
    """Threads take turns: hooks, gradients and torch's random numbers belong to all of them."""

    @functools.wraps(f)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with _turn:
            return f(*args, **kwargs)

    return alone


@_one_at_a_time
def diagnose(
    model: nn.Module,
    inputs: Any,
    loss: Any,
    *,
    data: Dependence | Asked | tuple[Any, Any] | None = None,
    optimiser: torch.optim.Optimizer | float | None = None,
    clip: float | None = None,
    norms: Sequence[float] | None = None,
    window: int | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    batch_axis: int | None = None,
    use: bool = False,
    fraction: float = 0.01,
    batches: int = 8,
) -> Diagnosis:
    """Tells what is wrong with a recurrent model, from a forward and a backward pass over one batch or a few.

        tt.diagnose(model, x, lambda out: criterion(out, y))
        tt.diagnose(model, loader, criterion, optimiser=optimiser)

    It follows the gradient through time of every recurrence (`throughtime.capture`), looks how far back the targets
    depend on the inputs, audits weights, gates, updates and the use of the layers, and concludes. Where a gradient
    vanishes it says which of the two it is: no dependency in the data, or wrong weights for one that is there.

    inputs, loss: one batch, a tensor or a tuple of arguments, with a loss of the output. Or several: pairs
              (inputs, targets), as a DataLoader gives them, with a loss of output and targets. 5 or more give the
              gradient horizon an interval.
    data:     what the data horizon is from: (inputs, targets) as `dependence` takes them, or a `Dependence`. None: the
              batches themselves, where it can be seen what they are: symbols or real numbers, a target at each step or
              a label at the end.
    optimiser: to look at the size of its next step; or the learning rate of plain SGD. clip: the norm it clips to.
    norms:    the norms of all gradients together in the steps so far, one a step, to judge `clip` by.
    window:   T, the steps of truncated BPTT; None for those of the batch.
    lengths:  the steps of each sequence of the (first) batch without its padding.     batch_axis: see `audit_run`.
    use:      measure also how far back the model uses its inputs. For a trained model: a new one uses nothing.
    fraction: a gradient counts as arrived above this share of its size at lag 0.
    batches:  at most so many are looked at.

    The model runs as it is, in train or eval mode. It, its gradients, its buffers, its hidden states and torch's random
    numbers are left as they were. An exception of the model or the loss passes through. Raises FlowError where there is
    nothing to measure: no recurrence, a loss that is not one number or does not depend on the model.
    """
    _check(model, data, lengths)
    _check_numbers(optimiser, clip, window, batch_axis, batches)
    captures: list[Capture] = []
    notes: list[str] = []
    findings: list[Finding] = []
    updates: UpdateSizes | None = None
    with untouched(model):
        found, of = read_batches(inputs, loss, batches)
    for n, batch in enumerate(found):
        with untouched(model, (batch.args, batch.kwargs, batch.targets)):
            captures.append(_run(model, batch, of))
            if n == 0 and optimiser is not None:
                try:
                    updates = next_step(model, optimiser, clip)
                except FlowError as error:
                    notes.append(f"the size of the step: {error}")
            findings += _broken_gradients(model) if n == 0 else ()
    for one in captures:
        one.check()
    axes, handed = axes_of(captures[0])
    if not axes.T or not axes.B:
        raise FlowError(
            f"the batch is empty: {captures[0].recurrences[0].name or 'the model'} ran over {axes.T} steps of "
            f"{axes.B} sequences"
        )
    first = found[0]
    if parts(model) and not first.kwargs:
        with untouched(model, (first.args, first.targets)):
            findings += audit_run(model, first.args, lambda out: of(out, first), batch_axis=batch_axis, lengths=lengths)
    asked: Asked | None = None
    try:
        if isinstance(data, Dependence | Asked):
            asked = data if isinstance(data, Asked) else Asked(data)
        else:
            asked = measure_data(_seen(captures, found, lengths)) if data is None else measure_given(*data)
            asked = asked.folded() if data is None and from_both_ends(captures[0]) else asked
            notes += asked.notes
    except Unseen as error:
        notes.append(f"the data horizon: {error}")
    used: Use | None = None
    if use:
        try:
            with untouched(model, (first.args, first.targets)):
                used = measure_use(model, first, of, axes)
        except Unseen as error:
            notes.append(f"the use horizon: {error}")
    pairs, together = (None, None) if asked is None else (asked.pairs, asked.together)
    among = None
    if handed is not None and data is None and asked is not None:
        among = captures[0].recurrences[0].name
        notes.append(
            f"{among or 'the model'} hands its last state on: lags are counted back from its last step, in the "
            "data and in its gradient; the steps of what follows come on top"
        )
    return from_capture(
        captures, model=model, data=pairs, together=together, use=used, updates=updates, window=window,
        clip=clip, norms=None if norms is None else norm_history(norms),
        findings=findings, notes=notes, fraction=fraction, among=among,
        added=None if asked is None else asked.added, pictures=True, read=_text(axes.T, first),
    )  # fmt: skip


def _check(model: Any, data: Any, lengths: Any) -> None:
    check_model(model)
    if any(v.is_meta for v in model.parameters()):
        raise FlowError("the model is on the meta device, where there are no numbers; move it to a real one")
    pair = isinstance(data, tuple | list) and not isinstance(data, Asked) and len(data) == 2
    if data is not None and not isinstance(data, Dependence | Asked) and not pair:
        raise FlowError(f"data must be (inputs, targets) or a Dependence; came {type(data).__name__}")
    if lengths is not None:
        try:
            n = torch.as_tensor(lengths)
        except (TypeError, ValueError, RuntimeError):
            n = torch.empty(0, 0)
        if n.dim() != 1 or n.is_floating_point() or bool((n < 0).any()):
            raise FlowError(f"lengths must be the steps of each sequence, whole numbers [B]; came {_short(n)}")


def _check_numbers(optimiser: Any, clip: Any, window: Any, batch_axis: Any, batches: Any) -> None:
    def number(v: Any, kind: type = Real) -> bool:
        return isinstance(v, kind) and not isinstance(v, bool)

    if not (optimiser is None or isinstance(optimiser, torch.optim.Optimizer | Tensor) or number(optimiser)):
        raise FlowError(f"optimiser must be a torch.optim.Optimizer or a learning rate; came {optimiser!r}")
    if clip is not None and not (number(clip) and clip > 0):
        raise FlowError(f"clip must be the norm that gradients are clipped to, a number above 0; came {clip!r}")
    if window is not None and not (number(window, Integral) and window >= 1):
        raise FlowError(f"window must be the steps of truncated BPTT, a whole number of at least 1; came {window!r}")
    if batch_axis is not None and not number(batch_axis, Integral):
        raise FlowError(f"batch_axis must be the number of an axis of the input; came {batch_axis!r}")
    if not (number(batches, Integral) and batches >= 1):
        raise FlowError(f"batches must be how many to look at, a whole number of at least 1; came {batches!r}")


def _short(n: Tensor) -> str:
    return f"{n.dtype} {list(n.shape)}" + (f" with {int(n.min())} in it" if n.numel() and n.dim() == 1 else "")


def _run(model: nn.Module, batch: Batch, of: Any) -> Capture:
    with capture(model) as captured:
        value = of(model(*batch.args, **batch.kwargs), batch)
        if not isinstance(value, Tensor) or value.numel() != 1:
            came = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise FlowError(f"the loss must be one number, a tensor with one element; came {came}")
        if not any(p.requires_grad for p in model.parameters()):
            raise FlowError("all parameters of the model are frozen (requires_grad is False); thaw what is to learn")
        if not value.requires_grad:
            raise FlowError(
                "the loss does not depend on the model's parameters; look for detach(), .item(), argmax or "
                "torch.no_grad() on the way to it"
            )
        value.backward()
    return captured


def _text(T: int, batch: Batch) -> Tensor | None:
    """The symbols of the first sequence, where the target of each is the next one: that is a model of a text."""
    x, y = batch.args[0] if batch.args else None, batch.targets
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)) or x.dim() != 2 or x.shape != y.shape:
        return None
    if x.is_floating_point() or y.is_floating_point() or x.numel() == 0:
        return None
    for a, b in ((x[0], y[0]), (x[:, 0], y[:, 0])):
        if len(a) == T and torch.equal(a[1:], b[:-1]):
            return torch.cat([a, b[-1:]]).long().cpu()
    return None


def _broken_gradients(model: nn.Module) -> list[Finding]:
    bad = [n for n, p in model.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all())]
    if not bad:
        return []
    some = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
    return [
        Finding(
            "error", "not-finite", Where(parameter=some), f"the gradient of {len(bad)} parameter(s) is NaN or infinite",
            "The next step would spoil these weights.", "skip this step; look for NaN in the batch; clip the gradient",
            float(len(bad)),
        )
    ]  # fmt: skip


def _seen(captures: Sequence[Capture], found: Sequence[Batch], lengths: Any) -> list[Sequences]:
    there = []
    for n, (one, batch) in enumerate(zip(captures, found, strict=True)):
        if batch.targets is None:
            raise Unseen("the targets are inside the loss; give data=(inputs, targets)")
        args = (*batch.args, *batch.kwargs.values())
        n_own = torch.as_tensor(lengths) if n == 0 and lengths is not None else None
        there.append(see(args, batch.targets, *axes_of(one), n_own))
    return there
