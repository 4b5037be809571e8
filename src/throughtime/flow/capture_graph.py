"""The gradient that enters a tensor from outside a recurrence, read from autograd's graph by hooks on its nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Edge = tuple[Any, int]  # a node of autograd's graph, and which of its results


def edge(v: Tensor) -> Edge | None:
    """Where the gradient of a tensor goes; None for a leaf, or outside a graph."""
    return None if v.grad_fn is None else (v.grad_fn, v.output_nr)


class Slot:
    """A tensor that a module returned, and the gradient that enters it from outside the recurrence.

    A hook on the tensor sees the total gradient (`total`), with what comes back through the next step in it. Hooks on
    the nodes of that step (`add_inside`) see what that is; the rest entered from outside. Where the nodes
    outside are known too (`add_outside`) and account for the rest, their sum is taken, for it is not rounded by the
    subtraction.
    """

    def __init__(self, tensor: Tensor):
        self.tensor: Tensor | None = tensor
        self.version = tensor._version
        self.edge = edge(tensor)
        self.shape = tensor.shape
        self.entered: Tensor | None = None
        self.inner: set[Any] = set()  # the nodes that belong to the recurrence
        self.heard: set[tuple[Any, int]] = set()  # those with a hook, and for which of their inputs
        self._inside: Tensor | None = None
        self._outside: Tensor | None = None

    def total(self, g: Tensor | None) -> None:
        """The whole gradient of the tensor, after all that add up to it; None where none reached it, but another
        result of its node."""
        if g is None:
            return
        g, inside, outside = g.detach(), self._inside, self._outside
        self._inside = self._outside = None
        whole = g.double()
        if inside is None:
            part = whole.clone()
        elif torch.equal(g, inside):
            part = torch.zeros_like(whole)
        else:
            part = whole - inside.double()
            if outside is not None:
                size = max(float(v.abs().max()) for v in (whole, inside, outside))
                if float((part - outside).abs().max()) <= 64 * torch.finfo(g.dtype).eps * size:
                    part = outside
        self.entered = part if self.entered is None else self.entered + part

    def add_inside(self, g: Tensor) -> None:
        """A gradient that a step of the recurrence itself sends back; added up in the order in which autograd does."""
        g = g.detach().reshape(self.shape)
        self._inside = g.clone() if self._inside is None else self._inside + g

    def add_outside(self, g: Tensor) -> None:
        """A gradient that a node outside the recurrence sends."""
        g = g.detach().reshape(self.shape).double()
        self._outside = g.clone() if self._outside is None else self._outside + g

    def handed_on(self, given: Tensor) -> str | None:
        """Whether `given` is this tensor, handed on as it is: "attached", or "detached" from the graph; None if not.

        A view of it counts, if its numbers stand in the same order.
        """
        mine = self.tensor
        if mine is None or mine.dtype != given.dtype or mine.numel() != given.numel() or mine._version != self.version:
            return None
        if given is not mine and not (
            given.data_ptr() == mine.data_ptr() and given.is_contiguous() and mine.is_contiguous()
        ):
            return None
        if not given.requires_grad or not mine.requires_grad:
            return "detached"
        return "attached" if _leads_to(edge(given), self.edge) else "detached"

    def release(self) -> None:
        """Lets go of the tensor and its graph."""
        self.tensor, self.edge, self.inner = None, None, set()
        self.heard = set()


def _leads_to(start: Edge | None, end: Edge | None) -> bool:
    # Along views and the wrappers of torch's module hooks, which have one way on.
    here = start
    for _ in range(32):
        if here is None or here[0] is None or end is None:
            return False
        if here == end:
            return True
        node, number = here
        ways = node.next_functions
        if len(ways) == 1:
            here = ways[0]
        elif node.name() == "BackwardHookFunctionBackward" and number < len(ways):
            here = ways[number]
        else:
            return False
    return False


Found = Callable[[Any, int, Slot], None]  # a node, the number of its input, and the slot that this input is


def walk(starts: Iterable[Tensor], stop: set[Any], slots: dict[Edge, list[Slot]], found: Found, seen: set[Any]) -> None:
    """Goes back through the graph from `starts`, not beyond the nodes in `stop` nor those in `seen`; calls `found`
    for every node that uses a slot's tensor. The nodes passed are added to `seen`."""
    waiting = [v.grad_fn for v in starts if v.grad_fn is not None]
    while waiting:
        node = waiting.pop()
        if node in seen or node in stop:
            continue
        seen.add(node)
        for i, (below, number) in enumerate(node.next_functions):
            if below is None:
                continue
            for slot in slots.get((below, number), ()):
                found(node, i, slot)
            waiting.append(below)
