"""A module of the user's own, called again and again with the state it returned, as one recurrence."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from throughtime.errors import FlowError
from throughtime.flow.entering import Entering
from throughtime.flow.randomness import RandomState, drawing_from
from throughtime.flow.sent import row_sizes
from throughtime.flow.tree import leaves, with_leaves


class StepCall(NamedTuple):
    """One call of the module: its arguments, the random state before it, and the states that it returned."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    random: RandomState
    states: list[Tensor]


class FollowedStep(NamedTuple):
    """What arrives at step k from every loss step that is followed.

    rows: the loss steps t. states: dL_t/ds_k by name, along all paths, each [rows, ...] in the state's shape.
    parameters: what step k adds to the gradient of each parameter, for each row; empty unless asked for.
    """

    k: int
    rows: list[int]
    states: dict[str, Tensor]
    parameters: dict[str, Tensor]


class _Replayed(NamedTuple):
    states: list[Tensor]
    outputs: list[Tensor]
    before: list[Tensor]
    parameters: dict[str, Tensor]


@dataclass(frozen=True)
class StepRecurrence:
    """A module that was called T times, each time with the states that it returned the time before.

        outputs_t, s_t = module(inputs_t, s_{t-1})

    Its equations are not known, so that each step is run again as it was, in float64 where the module can, and
    differentiated by autograd. Every step starts from the state that was recorded.

    module, weights: what ran, and all of its parameters and buffers by name as they were.
    modes:   for each submodule, whether it was in training mode.
    calls:   the T calls.
    links:   for each state, where it is among the tensors returned, and where among those given.
    outputs: where the other tensors are among those returned.
    """

    module: nn.Module
    weights: dict[str, Tensor]
    modes: list[tuple[nn.Module, bool]]
    calls: Sequence[StepCall]
    links: tuple[tuple[int, int], ...]
    outputs: tuple[int, ...]
    name: str = ""

    layer = 0
    reverse = False
    lengths = None

    @property
    def kind(self) -> str:
        """What the module is called in tables and pages: its class."""
        return type(self.module).__name__

    @property
    def states(self) -> tuple[str, ...]:
        """The names of the states: h, then h2, h3, ..."""
        return ("h", *(f"h{i}" for i in range(2, len(self.links) + 1)))

    @cached_property
    def sequences(self) -> list[Tensor]:
        """Every state after every step, as recorded, each [T, ...] in the state's own shape, float64."""
        return [torch.stack([c.states[i].double() for c in self.calls]) for i in range(len(self.links))]

    @property
    def output(self) -> Tensor:
        """The first state after every step [T, ...] float64."""
        return self.sequences[0]

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The module's parameters as they were, by name."""
        return {n: v for n, v in self.weights.items() if n in dict(self.module.named_parameters())}

    @cached_property
    def dtype(self) -> torch.dtype | None:
        """In what the steps are computed: float64; None for the module's own where it cannot be run in float64."""
        try:
            same = self._differs(0, self._run(0, torch.float64)) is None  # random numbers may depend on the dtype
        except RuntimeError:
            return None
        return torch.float64 if same else None

    def follow(self, entering: Entering, with_parameters: bool = False) -> Iterator[FollowedStep]:
        """Sends every row of `entering` back through time; yields what arrives, step by step, the last step first."""
        T = len(self.calls)
        chosen = range(T) if entering.rows is None else entering.rows
        rows: list[int] = [0] if entering.summed else []
        start = [s[0] for s in self.sequences]
        ds = [s.new_zeros(len(rows), *s.shape) for s in start]
        for k in reversed(range(T)):
            if entering.summed:
                assert entering.above is not None
                ds = [d if g is None else d + g[:, k].double() for d, g in zip(ds, entering.above, strict=True)]
            elif k in chosen:
                rows.append(k)
                given = [None if g is None else g[k].double() for g in entering.direct]
                new = [torch.zeros_like(s) if g is None else g for g, s in zip(given, start, strict=True)]
                ds = [torch.cat([d, n[None]]) for d, n in zip(ds, new, strict=True)]
            enters = entering.outputs[k] if entering.outputs is not None and (entering.summed or k in chosen) else None
            arrived, ds, parameters = self._back(k, ds, enters, with_parameters)
            yield FollowedStep(k, list(rows), dict(zip(self.states, arrived, strict=True)), parameters)

    def send_back(self, entering: Entering) -> dict[str, Tensor]:
        """The maps ||dL_t/ds_k|| of every state, each [T, T] float64 (see `GradientFlow`)."""
        T = len(self.calls)
        maps = {name: torch.zeros(T, T, dtype=torch.float64) for name in self.states}
        for step in self.follow(entering):
            for name, value in step.states.items():
                maps[name][step.rows, step.k] = row_sizes(value).cpu()
        return maps

    def _back(
        self, k: int, ds: list[Tensor], enters: Sequence[Tensor | None] | None, with_parameters: bool
    ) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
        # ds: the gradient at the states of step k, one row a loss; what enters the outputs joins the last row.
        R = ds[0].shape[0]
        step = self._replay(k)
        ends, grads = list(step.states), [d.to(s.dtype) for d, s in zip(ds, step.states, strict=True)]
        for i, o in enumerate(step.outputs):
            g = None if enters is None else enters[i]
            if g is not None and o.requires_grad:
                full = o.new_zeros(R, *o.shape)
                full[-1] = g.to(o)
                ends.append(o)
                grads.append(full)
        wanted = [*step.states, *step.before, *(step.parameters.values() if with_parameters else ())]
        found = _batched(ends, wanted, grads, R)
        S, n = len(step.states), len(step.before)
        before = found[S : S + n] if n else [torch.zeros_like(d) for d in ds]
        parameters = dict(zip(step.parameters, found[S + n :], strict=True)) if with_parameters else {}
        return found[:S], before, parameters

    def _replay(self, k: int) -> _Replayed:
        step = self._run(k, self.dtype)
        name = self._differs(k, step)
        if name is not None:
            raise FlowError(
                f"{self.name} ({self.kind}), step {k}: run again, the module gives another state {name}; it must "
                "depend on nothing but its arguments, parameters, buffers and torch's random numbers"
            )
        return step

    def _differs(self, k: int, step: _Replayed) -> str | None:
        # The name of a state that is not the one recorded, as far as rounding can tell.
        for name, got, was in zip(self.states, step.states, self.calls[k].states, strict=True):
            if got.shape != was.shape:
                return name
            if was.numel() and float((got.detach() - was).abs().max()) > 1e-2 * (1.0 + float(was.abs().max())):
                return name
        return None

    def _run(self, k: int, dtype: torch.dtype | None) -> _Replayed:
        call = self.calls[k]
        names = set(self.parameters)

        def cast(v: Tensor) -> Tensor:
            v = v.detach()
            return v.to(dtype, copy=True) if dtype is not None and v.is_floating_point() else v.clone()

        parameters = {n: cast(v).requires_grad_(v.is_floating_point()) for n, v in self.weights.items() if n in names}
        buffers = {n: cast(v) for n, v in self.weights.items() if n not in names}
        given = [cast(v) for v in leaves((call.args, call.kwargs))]
        before = [given[i].requires_grad_() for _, i in self.links] if self._has_state(k) else []
        args, kwargs = with_leaves((call.args, call.kwargs), given)
        with drawing_from(call.random), _as_it_was(self.modes, dtype), torch.enable_grad():
            returned = leaves(torch.func.functional_call(self.module, {**parameters, **buffers}, args, kwargs))
        states = [returned[i] for i, _ in self.links]
        return _Replayed(states, [returned[i] for i in self.outputs], before, parameters)

    def _has_state(self, k: int) -> bool:
        # The first call may have been without one.
        given = leaves((self.calls[k].args, self.calls[k].kwargs))
        if k:
            return True
        return all(
            i < len(given) and given[i].shape == s.shape and given[i].is_floating_point()
            for (_, i), s in zip(self.links, self.calls[0].states, strict=True)
        ) and len(given) == len(leaves((self.calls[-1].args, self.calls[-1].kwargs)))


@contextmanager
def _as_it_was(modes: list[tuple[nn.Module, bool]], dtype: torch.dtype | None) -> Iterator[None]:
    now = [(m, m.training) for m, _ in modes]
    default = torch.get_default_dtype()
    for m, training in modes:
        m.training = training
    if dtype is not None:
        torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(default)
        for m, training in now:
            m.training = training


def _batched(ends: list[Tensor], wanted: list[Tensor], grads: list[Tensor], R: int) -> list[Tensor]:
    """The gradients of `ends` for all rows at once, or one by one where an operation has no batched derivative."""
    live = [(e, g) for e, g in zip(ends, grads, strict=True) if e.requires_grad]
    if not live or R == 0:
        return [v.new_zeros(R, *v.shape).double() for v in wanted]
    outs, gs = [e for e, _ in live], [g for _, g in live]
    need = [v for v in wanted if v.requires_grad]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.autograd.grad(outs, need, gs, retain_graph=True, allow_unused=True, is_grads_batched=True)
    except RuntimeError:
        each = [
            torch.autograd.grad(outs, need, [g[r] for g in gs], retain_graph=True, materialize_grads=True)
            for r in range(R)
        ]
        found = tuple(torch.stack(column) for column in zip(*each, strict=True))
    got = iter(found)
    full = [next(got) if v.requires_grad else None for v in wanted]
    return [v.new_zeros(R, *v.shape).double() if g is None else g.double() for g, v in zip(full, wanted, strict=True)]
