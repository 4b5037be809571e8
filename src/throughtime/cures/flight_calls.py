"""What is kept of a step while it runs, so that it can be run again: the model's calls, and the gradients that came."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.cures.guard_snapshot import Generators, generators
from throughtime.flow.tree import leaves

SAMPLE = 64  # numbers of each output that are kept, to tell whether the model gives the same again


@dataclass(eq=False)
class ModelCall:
    """One call of the model: what went in, by reference, and the gradient that came back to what came out.

    versions: of the arguments, so that a change in place is seen. gradients: for each tensor returned, or None.
    """

    module: nn.Module
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    versions: list[int]
    random: Generators
    autocast: list[tuple[str, torch.dtype]]
    outputs: list[Tensor] = field(default_factory=list)  # a few numbers of each
    sums: list[Tensor] = field(default_factory=list)  # the sum of each, which is bad if any number is
    gradients: list[Tensor | None] = field(default_factory=list)

    @property
    def untouched(self) -> bool:
        """Whether the arguments are still what they were."""
        given = leaves((self.args, self.kwargs))
        return all(v._version == n for v, n in zip(given, self.versions, strict=True))


class CallRecorder:
    """Records the calls of a model that have a graph, between `open` and `close`, and changes no number of them.

    Only calls from outside count, not those that the model makes of its own parts. Where a step went by without a
    call of the model as a whole, its parts are listened to from then on.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.calls: list[ModelCall] = []
        self._names = {m: n or type(m).__name__ for n, m in reversed(list(model.named_modules()))}
        self._roots = [model]
        self._handles: list[Any] = []
        self._open: list[ModelCall | None] = []

    def open(self) -> None:
        """Puts the hooks on."""
        for module in self._roots:
            self._handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._after))

    def close(self) -> None:
        """Takes the hooks off; the calls are kept until `clear`."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._open.clear()
        if not self.calls:
            self._roots = list(self.model.modules())

    def parts_only(self) -> None:
        """From now on the parts are listened to, for a model that others call with arguments that are not its own."""
        self._roots = list(self.model.modules())[1:]

    def clear(self) -> None:
        """Lets go of the calls."""
        self.calls.clear()

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # While a backward pass runs, checkpointing calls modules again.
        if self._open or not torch.is_grad_enabled() or torch._C._current_graph_task_id() >= 0:
            self._open.append(None)
            return
        given = leaves((args, kwargs))
        versions = [0 if v.is_inference() else v._version for v in given]
        call = ModelCall(module, self._names[module], args, kwargs, versions, generators(), _autocast(given))
        self._open.append(call)

    def _after(self, module: nn.Module, args: Any, out: Any) -> None:
        call = self._open.pop() if self._open else None
        while call is not None and call.module is not module and self._open:
            call = self._open.pop()  # one that an error left open
        if call is None or call.module is not module:
            return
        returned = leaves(out)
        if not any(v.requires_grad for v in returned):
            return
        call.outputs = [few(v) for v in returned]
        call.sums = [total(v) for v in returned]
        call.gradients = [None] * len(returned)
        for i, v in enumerate(returned):
            listen(v, lambda g, i=i, call=call: _add(call.gradients, i, g))  # type: ignore[misc]
        self.calls.append(call)


def listen(v: Tensor, take: Any) -> Any:
    """Calls `take` with the whole gradient of a tensor, after all hooks on it; None for one without a graph."""
    node, nr = v.grad_fn, v.output_nr
    if node is None:
        return None

    def hook(gradients: Any) -> None:
        if gradients[nr] is not None:
            take(gradients[nr])

    # A hook on the node comes after those on the tensor: it sees what they made of the gradient.
    return node.register_prehook(hook)  # type: ignore[attr-defined]


def few(v: Tensor) -> Tensor:
    """A few numbers of a tensor, evenly spread."""
    flat = v.detach().reshape(-1) if v.is_contiguous() else v.detach().flatten()
    return flat[:: max(1, flat.numel() // SAMPLE)][:SAMPLE].clone()


def total(v: Tensor) -> Tensor:
    """The sum of a tensor, in float32 at least; NaN or infinite if one of its numbers is."""
    v = v.detach()
    short = v.dtype in (torch.float16, torch.bfloat16)
    return v.sum(dtype=torch.float32) if short else v.sum()


def _add(found: list[Tensor | None], i: int, g: Tensor) -> None:
    had = found[i]
    found[i] = g.detach() if had is None else had + g.detach()


def _autocast(given: list[Tensor]) -> list[tuple[str, torch.dtype]]:
    devices = {"cpu", *(v.device.type for v in given)}
    return [(d, torch.get_autocast_dtype(d)) for d in sorted(devices) if torch.is_autocast_enabled(d)]
