"""Small random problems for every cell, in float64, and the gradients of one loss by name."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from throughtime import cells
from throughtime.engine import unroll

F64 = torch.float64


class Layered(cells.Cell):
    """A user's cell that uses what the built-in ones do not: layer norm over units, where, power, a matrix, units."""

    gates = ("a", "k")
    states = ("m", "h")
    units = ("scale", "shift")
    matrices = ("V",)
    apart = ("k",)

    def step(self, z, s, w):
        centred = z.a - z.a.mean(-1, keepdim=True)
        a = centred * (centred.square().mean(-1, keepdim=True) + 0.1) ** -0.5 * w.scale + w.shift
        k = torch.sigmoid(z.k_x) * torch.cos(z.k_h)
        h = k * s.h + (1 - k) * torch.where(a > 0, a, torch.exp(a) - 1)
        m = torch.tanh(torch.nn.functional.linear(h, w.V)) + s.m / 3
        return m, h


ALL = {name: (lambda name=name: cells.by_name(name)) for name in cells.NAMES}
ALL["lstm-projected"] = cells.ProjectedLSTM
ALL["users-own"] = Layered


@dataclass
class Problem:
    """The arguments of one unroll, all leaves."""

    cell: cells.Cell
    x: Tensor
    weights: dict[str, Tensor]
    units: list[Tensor]
    matrices: list[Tensor]
    states: list[Tensor]
    lengths: Tensor | None = None
    reverse: bool = False
    options: dict = field(default_factory=dict)

    def unroll(self, **options):
        return unroll(
            self.cell, self.x, **self.weights, units=self.units, matrices=self.matrices, states=self.states,
            lengths=self.lengths, reverse=self.reverse, **{**self.options, **options},
        )  # fmt: skip

    def leaves(self) -> dict[str, Tensor]:
        named = {"x": self.x, **self.weights}
        named |= dict(zip(self.cell.units, self.units, strict=True))
        named |= dict(zip(self.cell.matrices, self.matrices, strict=True))
        named |= {f"initial {n}": s for n, s in zip(self.cell.states, self.states, strict=True)}
        return named


def problem(name, T=5, B=3, D=4, H=5, P=None, lengths=None, reverse=False, bias=True, scale=0.6, **options) -> Problem:
    cell = ALL[name]()
    P = P or (3 if name == "lstm-projected" else H)
    G, R = len(cell.gates), len(cell.recurrent_gates)

    def leaf(*shape):
        return (torch.randn(*shape, dtype=F64) * scale).requires_grad_()

    weights = {"weight_ih": leaf(G * H, D)}
    if R:
        weights["weight_hh"] = leaf(R * H, P)
    if bias:
        weights["bias_ih"] = leaf(G * H)
        if R:
            weights["bias_hh"] = leaf(R * H)
    matrices = [leaf(P, H) for _ in cell.matrices]
    states = [leaf(B, P if k == 0 else H) for k in range(len(cell.states))]
    lengths = torch.tensor(lengths) if lengths else None
    return Problem(
        cell, leaf(T, B, D), weights, [leaf(H) for _ in cell.units], matrices, states, lengths, reverse, options
    )


def loss_of(outputs) -> Tensor:
    """A loss that weighs every element of every output differently."""
    return sum(
        (v.sin() * torch.linspace(0.3, 1.7, v.numel(), dtype=v.dtype).view_as(v)).sum()
        for part in outputs
        for v in part
    )


def gradients(p: Problem, outputs, create_graph=False) -> dict[str, Tensor]:
    """The gradient of `loss_of` by name; zero where the loss does not depend on a leaf."""
    named = p.leaves()
    grads = torch.autograd.grad(
        loss_of(outputs), list(named.values()), create_graph=create_graph, materialize_grads=True
    )
    return dict(zip(named, grads, strict=True))


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], atol=1e-11) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-10, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
