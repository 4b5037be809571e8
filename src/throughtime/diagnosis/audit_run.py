"""The audit of use: mistakes with recurrent layers that show in a short recording of a model at work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.diagnosis.audit_axis import axis
from throughtime.diagnosis.audit_padding import padding, padding_of_output
from throughtime.diagnosis.audit_use import last_state, no_gradient, states
from throughtime.diagnosis.finding import Finding, Where, ordered
from throughtime.diagnosis.recording import Recording, record
from throughtime.errors import FlowError


def audit_run(
    model: nn.Module,
    inputs: Tensor | tuple[Any, ...],
    loss: Callable[[Any], Tensor],
    *,
    batch_axis: int | None = None,
    lengths: Tensor | Sequence[int] | None = None,
) -> list[Finding]:
    """Runs the model once, forward and backward, and tells the mistakes of use that show.

    A sequence that runs along the wrong axis, padding that enters the loss, the wrong last state of a bidirectional
    layer, a state cut at every step, a layer without a past, weights that get no gradient.

    inputs:     what the model is called with, a tensor or a tuple of arguments, as a training step would have it.
    loss:       from the model's output to the loss, one number.
    batch_axis: along which axis of the (first) input the samples lie. Given that, a wrong axis is found for certain;
                else only where shapes give it away.
    lengths:    the steps of each sample without its padding, [B]; else padding is guessed from equal input at the ends.

    The model runs as it is, in train or eval mode; random state, buffers and gradients are put back. A state that the
    model keeps for itself moves on by one batch. For states carried from batch to batch record some training steps with
    `record` and ask `audit_recording`. An exception of the model passes through. Raises FlowError for a loss that
    is not one number, and for a model without a recurrent layer.
    """
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    grads = {p: p.grad for p in model.parameters()}
    buffers = {b: b.clone() for b in model.buffers()}
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            model.zero_grad(set_to_none=True)
            with record(model) as recording:
                output = model(*args)
                out = output[0] if isinstance(output, tuple | list) else output
                if isinstance(out, Tensor) and out.requires_grad:
                    out.retain_grad()
                value = loss(output)
                findings = list(_loss(value))
                if not findings:
                    value.backward()
            findings += audit_recording(recording, lengths=lengths)
            findings += axis(model, args, recording, batch_axis, out)
            if not any(f.code in ("loss-without-model", "not-finite") for f in findings):
                known = {f.where.module for f in findings if f.code == "wrong-last-state"}
                unreached = no_gradient(model, recording)
                findings += (f for f in unreached if not (f.where.reverse and f.where.module in known))
                if isinstance(out, Tensor) and not any(f.code == "padding-in-loss" for f in findings):
                    findings += padding_of_output(out, recording, lengths)
    finally:
        for p, g in grads.items():
            p.grad = g
        with torch.no_grad():
            for b, v in buffers.items():
                b.copy_(v)
    return ordered(findings)


def audit_recording(recording: Recording, *, lengths: Tensor | Sequence[int] | None = None) -> list[Finding]:
    """The mistakes of use that show in a recording of one or more training steps; see `record` and `audit_run`."""
    findings: list[Finding] = []
    for name in recording.modules:
        calls = recording.of(name)
        findings += states(name, calls)
        findings += last_state(name, calls, lengths)
        findings += padding(name, calls, lengths)
    return ordered(findings)


def _loss(value: Any) -> Iterator[Finding]:
    if not isinstance(value, Tensor) or value.numel() != 1:
        came = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise FlowError(f"the loss must be one number, a tensor with one element; came {came}")
    if not value.requires_grad:
        yield Finding(
            "error", "loss-without-model", Where(), "the loss does not depend on the model's parameters",
            "Nothing can be learned from it.", "look for detach(), .item(), argmax or torch.no_grad() on the way to it",
        )  # fmt: skip
    elif not value.isfinite():
        yield Finding(
            "error", "not-finite", Where(), f"the loss is {value.item()}", "Its gradient would spoil every weight.",
            "look for NaN in the batch first, then at the weights with audit(model)", value.item(),
        )  # fmt: skip
