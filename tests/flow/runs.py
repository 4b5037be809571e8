"""Small recurrences as they ran, of every cell, for the tests of what is measured on them."""

import torch

from tests.engine.problems import F64, problem
from throughtime.flow import Recurrence
from throughtime.flow.measure import recurrences
from throughtime.nn.layer import StackedLayer
from throughtime.nn.stack import Weights


def ran(name, *, truncated=False, **options) -> Recurrence:
    """A recurrence with random weights, of any cell in tests.engine.problems.ALL."""
    p = problem(name, **options)
    w = p.weights
    weights = Weights(
        w["weight_ih"], w.get("weight_hh"), w.get("bias_ih"), w.get("bias_hh"), tuple(p.units), tuple(p.matrices)
    )
    return Recurrence(p.cell, weights, p.x, p.states, p.lengths, p.reverse, truncated)


def of_module(module: StackedLayer, x, states=None) -> Recurrence:
    """The first layer's forward direction of a module over x."""
    return recurrences(module.double(), x.double(), states)[0][0]


def linear(U, T=40, B=2) -> Recurrence:
    """h' = U h + x, the linear network."""
    from throughtime.cells import Simple

    H = U.shape[0]
    weights = Weights(torch.zeros(H, 1, dtype=F64), U, None, None, (), ())
    return Recurrence(Simple("identity"), weights, torch.zeros(T, B, 1, dtype=F64), [torch.zeros(B, H, dtype=F64)])
