"""The audit of padding: whether what was added to make sequences one length enters the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from throughtime.diagnosis.finding import Finding, Where
from throughtime.diagnosis.recording import Call, Recording
from throughtime.errors import FlowError

_DO = "leave padded steps out of the loss (ignore_index, a mask), or read each sample at its own last step"


def padding(name: str, calls: list[Call], lengths: Tensor | Sequence[int] | None) -> Iterator[Finding]:
    """Padding of a layer's output that the loss sends a gradient to, and a last state that comes after padding."""
    for call in calls:
        if call.cell or call.x is None or not call.returned:
            continue
        n = true_lengths(lengths, call) if lengths is not None else guess(call.x)
        if n is None or not bool((n < call.steps).any()):
            continue
        short = int((n < call.steps).sum())
        if call.last_used:
            yield Finding(
                "warning", "state-after-padding", Where(name),
                f"the last state is used, and {short} of {call.batch} samples are padded behind their end"
                + _seems(lengths is not None),
                "Their state has run through the padding before it is read.",
                "pack the batch (pack_padded_sequence), or read each sample at its own last step", float(short),
                "samples",
            )  # fmt: skip
        elif call.bidirectional:
            yield Finding(
                "warning" if lengths is not None else "note", "reverse-starts-in-padding", Where(name, None, True),
                f"{short} of {call.batch} samples are padded behind their end{_seems(lengths is not None)}",
                "The reverse direction runs through the padding first, so its output depends on how much there is.",
                "pack the batch (pack_padded_sequence)", float(short), "samples",
            )  # fmt: skip
        if call.gradient is None:
            return
        padded = torch.arange(call.steps, device=n.device)[:, None] >= n
        size = call.gradient.double().square().sum(-1)  # [T, B]
        inside = size[padded.to(size.device)].sum().item()
        if inside > 0:
            share = inside / size.sum().item()
            yield _finding(name, share, lengths is not None, "of the gradient that enters its output")
        return


def padding_of_output(out: Tensor, recording: Recording, lengths: Tensor | Sequence[int] | None) -> Iterator[Finding]:
    """Padding of the model's output that the loss looks at, for layers that were given a packed batch."""
    if lengths is None or out.grad is None or not recording.calls:
        return
    call = recording.calls[0]
    n = true_lengths(lengths, call)
    T, B = call.steps, call.batch
    size = out.grad.double().square()
    shapes = {(B, T): True, (T, B): False}
    first = tuple(size.shape[:2])
    if T == B or first not in shapes:
        return
    size = size.flatten(2).sum(-1) if size.dim() > 2 else size
    padded = torch.arange(T)[:, None] >= n
    share = size[(padded.T if shapes[first] else padded).to(size.device)].sum() / size.sum()
    if share > 0:
        yield _finding("", share.item(), True, "of the gradient that enters the model's output")


def guess(x: Tensor) -> Tensor | None:
    """The lengths [B] that an input [T, B, D] seems to have; None if it does not look padded.

    Padding looks like this: the same vector at the end of several sequences, in runs of different lengths, and nowhere
    else in any of them.
    """
    T, B, _ = x.shape
    if T < 3 or B < 2:
        return None
    for b in range(B):
        same = (x == x[-1, b]).all(-1)  # [T, B]
        run = same.flip(0).int().cumprod(0).sum(0)  # the run at each end
        if (run > 1).sum() >= 2 and len(run.unique()) > 1 and int(same.sum()) == int(run.sum()) and (run < T).all():
            return T - run
    return None


def true_lengths(lengths: Tensor | Sequence[int], call: Call) -> Tensor:
    """The lengths that were given, [B], checked against a call."""
    n = torch.as_tensor(lengths).cpu()
    if n.shape != (call.batch,) or n.is_floating_point() or n.min() < 0 or n.max() > call.steps:
        raise FlowError(
            f"lengths must be {call.batch} whole numbers in 0..{call.steps}, one a sample; came {n.tolist()[:10]}. If "
            "these are the right ones, the layer takes another axis for the batch: check batch_first"
        )
    return n


def _finding(name: str, share: float, certain: bool, what: str) -> Finding:
    return Finding(
        "warning", "padding-in-loss", Where(name), f"{share:.1%} {what} lies in the padding{_seems(certain)}",
        "The loss looks at steps that belong to no sequence, and the network learns them.", _DO, share, "share",
    )  # fmt: skip


def _seems(certain: bool) -> str:
    return "" if certain else " (guessed from equal inputs at the ends; give lengths= to be certain)"
