"""A tape run by torch: what each operation means, one line each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from throughtime.engine.tape import Op, Tape


class _ClipGrad(torch.autograd.Function):
    """Identity; its gradient is clamped to [-bound, bound] (Graves 2013)."""

    @staticmethod
    def forward(a: Tensor, bound: float) -> Tensor:
        return a.view_as(a)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.bound = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g.clamp(-ctx.bound, ctx.bound), None


MEANING: dict[str, Callable[..., Tensor]] = {
    "affine": lambda a, k, c: a * k + c if c else a * k,
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "reciprocal": torch.reciprocal,
    "power": torch.pow,
    "sqrt": torch.sqrt,
    "exp": torch.exp,
    "log": torch.log,
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "abs": torch.abs,
    "sign": torch.sign,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "softplus": F.softplus,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "clamp": torch.clamp,
    "heaviside": lambda a, k: torch.where(a == 0, k, (a > 0).to(a.dtype)).to(a.dtype),
    "select": lambda m, a, b: torch.where(m != 0, a, b),
    "mean": lambda a: a.mean(-1, keepdim=True).expand_as(a),
    "stop": lambda a: a.detach(),
    "clip_grad": _ClipGrad.apply,
    "dsigmoid": lambda a, y: a * y * (1 - y),
    "dtanh": lambda a, y: a * (1 - y * y),
    "linear": lambda a, m: F.linear(a.to(m.dtype), m).to(a.dtype),
    "linear_t": lambda a, m: torch.matmul(a.to(m.dtype), m).to(a.dtype),
}


def evaluate(ops: Sequence[tuple[int, Op]], values: dict[int, Tensor]) -> None:
    """Runs numbered operations in order, reading from and writing to `values`."""
    for number, op in ops:
        values[number] = MEANING[op.name](*[values[a] for a in op.args], *op.consts)


def run(tape: Tape, inputs: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """The outputs of a tape for the given inputs, each as its tuple of values; differentiable by autograd."""
    values = dict(enumerate(inputs))
    evaluate([(len(inputs) + i, op) for i, op in enumerate(tape.ops)], values)
    return [tuple(values[v] for v in out.values) for out in tape.outputs]
