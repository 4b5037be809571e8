"""The audit of states and gradients: what a layer was given to start from, what of it is used, what comes back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from throughtime.diagnosis.audit_padding import true_lengths
from throughtime.diagnosis.finding import Finding, Where
from throughtime.diagnosis.parts import parts
from throughtime.diagnosis.recording import Call, Recording


def states(name: str, calls: list[Call]) -> Iterator[Finding]:
    """A state that is carried and never cut, or cut at every step; a layer that has no past."""
    where = Where(name)
    uncut = [c for c in calls if c.given == "carried" and c.stale]
    if uncut:
        yield Finding(
            "error", "state-never-cut", where, f"{len(uncut)} of {len(calls)} calls were given a state with the "
            "graph of a step that had gone backward already",
            "The graph grows with every batch, and backward runs through all of it, or stops with an error.",
            "detach the state between batches: state = state.detach(), each of an LSTM's (h, c)", float(len(uncut)),
        )  # fmt: skip
    cut = [c for c in calls if c.given == "cut" and c.steps == 1 and c.returned]
    carried = [c for c in calls if c.given == "carried" and not c.stale]
    if cut and len(cut) > len(carried):
        yield Finding(
            "warning", "state-cut-every-step", where, f"{len(cut)} of {len(calls)} calls of one step were given a "
            "state without its graph",
            "The state is carried, but the gradient ends at each step: nothing is learned about the past.",
            "detach once a window, not at each step, and call backward once a window", float(len(cut)),
        )  # fmt: skip
    bare = [c for c in calls if c.steps == 1 and c.batch > 1 and c.given in ("none", "fresh") and c.returned]
    if bare and len(bare) == len(calls):
        yield Finding(
            "warning", "no-past", where, f"every call is of 1 step and starts from zeros (a batch of {bare[0].batch})",
            "The layer never has a past. Perhaps the sequence lies along the axis that it takes for the batch.",
            "check batch_first and the shape of the input; or carry the state from call to call", 1.0, "steps",
        )  # fmt: skip


def last_state(name: str, calls: list[Call], lengths: Tensor | Sequence[int] | None) -> Iterator[Finding]:
    """The reverse direction read at the end of the sequence, where it has just begun.

    What tells it: of each sample one step's output is used, and it lies in the second half of the sequence.
    """
    for call in calls:
        if call.cell or not call.bidirectional or call.gradient is None or call.x is None or call.steps < 3:
            continue
        backward = call.gradient[..., -call.finals[0].shape[-1] :].cpu()
        enters = backward.ne(0).any(-1)  # [T, B]
        samples = enters.any(0)
        if not samples.any() or (enters.sum(0) > 1).any():
            continue
        step = enters.int().argmax(0)[samples]
        n = true_lengths(lengths, call) if lengths is not None else torch.tensor(call.steps).expand(call.batch)
        if (step < n[samples] // 2).any():
            continue
        yield Finding(
            "warning", "wrong-last-state", Where(name, None, True), f"only its output at step {int(step.max())} of "
            f"0..{call.steps - 1} is used",
            "The reverse direction runs from the end: there it has seen hardly any input; its last state is at step 0.",
            "take h_n[-2] and h_n[-1], the last states of both directions, instead of y[:, -1]", float(step.max()),
            "step",
        )  # fmt: skip
        return


def no_gradient(model: nn.Module, recording: Recording) -> Iterator[Finding]:
    """Layers and directions whose weights the loss does not reach, after it has gone backward."""
    for part in parts(model):
        if part.module not in recording.modules:
            yield Finding(
                "note", "not-called", part.where(), "was not called", "Nothing is known about how it is used."
            )
            continue
        held = {k: v for k, v in part.parameters.items() if k.startswith("weight")}
        wanted = {k: v for k, v in held.items() if v.requires_grad and v.is_leaf}
        short = all(c.steps == 1 and c.given in ("none", "fresh") for c in recording.of(part.module))
        none = [k for k, v in wanted.items() if v.grad is None or not v.grad.any()]
        if none and len(none) == len(wanted):
            yield Finding(
                "warning", "no-gradient", part.where(none[0]), "no gradient arrives at the weights",
                "The loss does not depend on this layer or direction: it does not learn.",
                "look which output is used (h_n[-1] of a bidirectional layer is its reverse direction alone)", 0.0,
            )  # fmt: skip
        elif "weight_hh" in none and not short:
            yield Finding(
                "warning", "no-gradient", part.where("weight_hh"), "no gradient arrives at the recurrent weights",
                "The past does not enter the loss.", "look whether the state is zero, cut, or read at step 0", 0.0,
            )  # fmt: skip
