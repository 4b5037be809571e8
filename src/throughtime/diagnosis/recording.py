"""A short recording of how a model's recurrent layers are used: what they were given, and which gradient came back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from throughtime.diagnosis.parts import RECURRENT
from throughtime.errors import FlowError

Tensors = tuple[Tensor, ...]
RECENT = 32  # earlier calls among which the origin of a state is looked for


@dataclass
class Call:
    """One call of a recurrent layer, as plain data.

    module, kind: the layer's name in the model, and its class.    cell: whether it is one step (LSTMCell and so on).
    x:       its input [T, B, D] (None if packed).     steps, batch: T and B.     bidirectional: two directions.
    given:   the initial state: "none", "fresh" (zeros), "carried" (with the graph behind it), "cut" (the numbers that
             an earlier call gave back, without the graph), or "other".
    source:  the call whose final state was given, by number; None if none is known.
    stale:   whether the loss of that call had gone backward before this call.
    gradient: what enters the output from the loss, [T, B, P], set when the loss goes backward; None until then.
    """

    module: str
    kind: str
    cell: bool
    x: Tensor | None
    steps: int
    batch: int
    bidirectional: bool
    given: str = "none"
    source: int | None = None
    stale: bool = False
    gradient: Tensor | None = None
    finals: Tensors = ()
    returned: bool = False  # a gradient came back to any output
    last_used: bool = False  # a gradient came back to the final state


@dataclass
class Recording:
    """The calls of all recurrent layers of a model, in order, as plain data. `record` makes it."""

    calls: list[Call] = field(default_factory=list)

    def of(self, module: str) -> list[Call]:
        """The calls of one layer."""
        return [call for call in self.calls if call.module == module]

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of the layers that were called."""
        return tuple(dict.fromkeys(call.module for call in self.calls))

    def __str__(self) -> str:
        lines = [f"Recording of {len(self.calls)} calls"]
        for name in self.modules:
            calls = self.of(name)
            lengths = sorted({call.steps for call in calls})
            back = sum(call.returned for call in calls)
            span = str(lengths[0]) if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
            lines.append(f"  {name or 'the model itself'}: {len(calls)} calls of {span} steps, {back} with a gradient")
        return "\n".join(lines)


@contextmanager
def record(model: nn.Module, *, keep: bool = True) -> Iterator[Recording]:
    """Records every call of the model's recurrent layers inside a `with` block, by hooks, and takes them off again.

        with record(model) as recording:
            for _ in range(3):
                training_step()
        print(describe(audit_recording(recording)))

    Knows torch.nn's recurrent layers and cells and those of throughtime.nn. Changes no number; an exception passes
    through, and what was recorded up to then is kept. keep=False: without the calls' inputs. A call without grad
    is recorded as well, and has no gradient. Raises FlowError for a model without such a layer.
    """
    recording = Recording()
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, RECURRENT)]
    if not layers:
        raise FlowError("the model has no recurrent layer of torch.nn or throughtime.nn to record")
    handles = [module.register_forward_hook(_hook(recording, name, keep), with_kwargs=True) for name, module in layers]
    try:
        yield recording
    finally:
        for handle in handles:
            handle.remove()


def _hook(recording: Recording, name: str, keep: bool) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = dict(zip(("x", "state"), args, strict=False))
        x = next((given.get(k, kwargs.get(k)) for k in ("x", "input") if k in given or k in kwargs), None)
        state = given.get("state", next((kwargs[k] for k in ("hx", "state") if k in kwargs), None))
        call = _call(module, name, x, keep)
        states = _tensors(state)
        if states:
            call.given, call.source = _origin(recording.of(name), states)
            call.stale = call.source is not None and recording.of(name)[call.source].returned
        y = _tensors(output)[0]
        call.finals = tuple(s.detach() for s in _tensors(output if call.cell else output[1]))
        recording.calls.append(call)
        _listen(call, y, _tensors(output), getattr(module, "batch_first", False))

    return hook


def _call(module: nn.Module, name: str, x: Any, keep: bool) -> Call:
    cell, kind = isinstance(module, nn.RNNCellBase), type(module).__name__
    both = bool(getattr(module, "bidirectional", False))
    if isinstance(x, PackedSequence):
        return Call(name, kind, cell, None, len(x.batch_sizes), int(x.batch_sizes[0]), both)
    x = x.detach()
    if cell:
        x = x[None] if x.dim() == 2 else x[None, None]
    elif x.dim() == 2:
        x = x[:, None]
    elif getattr(module, "batch_first", False):
        x = x.transpose(0, 1)
    return Call(name, kind, cell, x.clone() if keep else None, x.shape[0], x.shape[1], both)


def _listen(call: Call, y: Tensor, outputs: Tensors, batch_first: bool) -> None:
    # Autograd calls hooks with None where another output of the same layer was reached and this one was not.
    def arrived(g: Tensor | None) -> None:
        call.returned = call.returned or g is not None

    def entered(g: Tensor | None) -> None:
        if g is None:
            return
        g = g.detach()
        if call.x is not None:
            if call.cell:
                g = g[None] if g.dim() == 2 else g[None, None]
            elif g.dim() == 2:
                g = g[:, None]
            elif batch_first:
                g = g.transpose(0, 1)
        call.gradient = g.clone() if call.gradient is None else call.gradient + g

    def last(g: Tensor | None) -> None:
        call.last_used = call.last_used or (g is not None and bool(g.any()))

    for v in outputs:
        if v.requires_grad:
            v.register_hook(arrived)
            if v is not y:
                v.register_hook(last)
    if y.requires_grad:
        y.register_hook(entered)


def _origin(earlier: list[Call], states: Tensors) -> tuple[str, int | None]:
    """Where an initial state comes from: the latest earlier call that gave back the same numbers."""
    if not any(bool(s.any()) for s in states):
        return "fresh", None
    recent = range(max(0, len(earlier) - RECENT), len(earlier))
    source = next((n for n in reversed(recent) if _same(earlier[n].finals, states)), None)
    if any(s.grad_fn is not None for s in states):
        return "carried", source
    return ("other", None) if source is None else ("cut", source)


def _same(a: Tensors, b: Tensors) -> bool:
    return len(a) == len(b) and all(v.shape == w.shape and torch.equal(v, w) for v, w in zip(a, b, strict=True))


def _tensors(value: Any) -> Tensors:
    if isinstance(value, Tensor):
        return (value,)
    if isinstance(value, PackedSequence):
        return (value.data,)
    if isinstance(value, tuple | list):
        return tuple(t for v in value for t in _tensors(v))
    return ()
