"""Follows the gradient of every loss step back through one of our layers, exactly, on the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from throughtime.errors import FlowError
from throughtime.flow.gradient_flow import GradientFlow, check_dtype
from throughtime.flow.passed import PassedStack, run
from throughtime.flow.recurrence import Recurrence
from throughtime.nn.layer import StackedLayer
from throughtime.nn.layout import enter


def gradient_flow(
    module: StackedLayer,
    x: Tensor,
    loss: Callable[[Tensor], Tensor] | Tensor,
    state: Any = None,
    *,
    layer: int = -1,
    reverse: bool = False,
    dtype: torch.dtype = torch.float64,
) -> GradientFlow:
    """The exact gradient through time of one layer of `module`: the size of dL_t/dz_k and dL_t/dh_k for every t, k.

    The loss is taken apart by the step t at which it enters the module's output, g_t = dL/dy_t. What flows back is
    linear in what enters (superposition), so each g_t is sent back alone, all of them side by side:

        delta_{t,t} = (dh_t/dz_t)^T g_t,     delta_{t,k} = (dh_k/dz_k)^T (ds_{k+1}/ds_k)^T ... g_t

    with the whole state s = (h, c, ...). Computed in float64 whatever the module's dtype, unless asked otherwise.

    module: one of `throughtime.nn`, in eval mode if it has dropout.
    x:      its input [T, B, D], or [B, T, D] if batch_first, or [T, D].
    loss:   a function from the output y to the scalar loss, or the gradient dL/dy itself, shaped as y.
    state:  the initial state, as the module's call takes it.
    layer, reverse: which layer (-1: the last) and which direction. In a layer below the last, row t still stands for
            the loss that enters the module's output at step t.
    dtype:  torch.float32 takes about half the time, with a relative error of about 1e-6 in each size, and the range of
            float64; see `Recurrence`.

    The module's rule `truncated` is followed; `clip` is not, for a clipped gradient does not add up.
    Raises FlowError for what cannot be measured: other modules, packed input, dropout that is switched on, a loss that
    is not a scalar, that does not depend on y, or that gives NaN.
    """
    _check(module, x, reverse)
    check_dtype(dtype)
    g = None if isinstance(loss, Tensor) else _entering(module, x, loss, state)
    seq = enter(x, module.batch_first)[0].detach().double()
    n = len(module.layer_weights())
    if not -n <= layer < n:
        raise FlowError(f"there is no layer {layer}; the module has {n}, numbered 0..{n - 1}")
    layer %= n
    stack = recurrences(module, seq, _states(state, x), dtype, layer)
    passed = PassedStack(stack, module.skip)
    if isinstance(loss, Tensor):
        g = _given(passed, x, loss)
    assert g is not None
    if not g.isfinite().all():
        bad = (~_time_first(g, module).isfinite()).flatten(1).any(1).nonzero()[0].item()
        raise FlowError(f"the gradient that enters from the loss is NaN or infinite, first at step {bad}")
    g = _time_first(g, module).double()
    maps = passed.maps(passed.enters(g), layer)[0][int(reverse)]
    return GradientFlow(maps, stack[layer][0].cell.name, layer, reverse)


def recurrences(
    module: StackedLayer,
    x: Tensor,
    states: list[Tensor] | None = None,
    dtype: torch.dtype = torch.float64,
    ahead: int | None = None,
) -> list[list[Recurrence]]:
    """The recurrences of a stack over x [T, B, D], layer by layer, the forward direction first.

    states: the initial ones, each [layers * dirs, B, .]; None for zeros. Without dropout, as in eval mode.
    ahead: see `throughtime.flow.passed.run`.
    """
    return run(
        module.step_cell(), module.layer_weights(), x, states,
        skip=module.skip, truncated=module.truncated, dtype=dtype, backend=module.backend, ahead=ahead,
    ).recurrences  # fmt: skip


def _entering(module: StackedLayer, x: Tensor, loss: Callable[[Tensor], Tensor], state: Any) -> Tensor:
    """g = dL/dy, in the layout of y. The module runs as it is, so that the loss sees the y that it knows."""
    with torch.no_grad():
        y = module(x, state)[0]
    with torch.inference_mode(False), torch.enable_grad():
        leaf = y.detach().clone().requires_grad_()
        value = loss(leaf)
        if not isinstance(value, Tensor) or value.numel() != 1:
            came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise FlowError(f"the loss must be one number, a tensor with one element; came {came}")
        if not value.requires_grad:
            raise FlowError("the loss does not depend on the module's output y; compute it from the y it is given")
        g = torch.autograd.grad(value, leaf, allow_unused=True)[0]
        if g is None:
            raise FlowError("the loss does not depend on the module's output y; compute it from the y it is given")
    return g


def _given(passed: PassedStack, x: Tensor, g: Tensor) -> Tensor:
    last = passed.recurrences if passed.skip else passed.recurrences[-1:]
    want = (*x.shape[:-1], sum(r.output.shape[-1] for directions in last for r in directions))
    if tuple(g.shape) != want:
        raise FlowError(f"the gradient dL/dy must be shaped as y, {want}; came {tuple(g.shape)}")
    return g.detach()


def _time_first(y: Tensor, module: StackedLayer) -> Tensor:
    if y.dim() == 2:
        return y[:, None]
    return y.transpose(0, 1) if module.batch_first else y


def _states(state: Any, x: Tensor) -> list[Tensor] | None:
    if state is None:
        return None
    given = [state] if isinstance(state, Tensor) else list(state)
    return [s.detach() if x.dim() == 3 else s.detach()[:, None] for s in given]


def _check(module: Any, x: Any, reverse: bool) -> None:
    if not isinstance(module, StackedLayer):
        raise FlowError(
            f"expected a layer of throughtime.nn; came {type(module).__name__}. "
            "throughtime.nn.convert(model) turns torch's recurrent layers into ours"
        )
    if not isinstance(x, Tensor):
        raise FlowError(f"expected x as a tensor [T, B, D]; came {type(x).__name__}; pad packed sequences first")
    if module.training and module.dropout > 0:
        raise FlowError(
            "the module is in training mode and its dropout draws anew at each call; call eval() on it first"
        )
    if reverse and len(module.layer_weights()[0]) == 1:
        raise FlowError("the module has no reverse direction; leave out reverse=True")
    if not x.isfinite().all():
        raise FlowError("x holds NaN or infinite numbers; the gradient through them is not defined")
