"""The audit of the recurrent weights: spectral radius and sigma_1 side by side, and what they do and do not decide."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from throughtime.diagnosis.finding import Finding, steps
from throughtime.diagnosis.parts import Part
from throughtime.flow.anatomy import anatomy
from throughtime.flow.bound import largest_slope
from throughtime.flow.jacobian import state_jacobian
from throughtime.flow.recurrence import Recurrence

LEFT = math.log(100)  # what is left after n steps at rate r is 1 % when n = LEFT / -ln r
SHORT = 10  # steps: a network that provably forgets in fewer is no recurrent network to speak of
GROWS = {"relu": 1.05, "identity": 1.05, "tanh": 2.0, "logistic": 8.0}  # spectral radius of U that is too large


def recurrent_weights(part: Part, lag: int | None) -> Iterator[Finding]:
    """What the blocks of U say about one layer in one direction."""
    if part.weights.weight_hh is None or not part.weights.weight_hh.any():
        return
    slope = largest_slope(part.cell)
    if slope is not None:
        yield _simple(part, slope, lag)
    elif len(part.cell.states) == 1 and not part.cell.matrices:
        yield _at_rest(part, lag)
    else:
        yield _blocks(part)


def radius(matrix: Tensor) -> float:
    """The largest |eigenvalue| of a square matrix."""
    return torch.linalg.eigvals(matrix).abs().max().item()


def sigma_1(matrix: Tensor) -> float:
    """The largest singular value."""
    return torch.linalg.matrix_norm(matrix, 2).item()


def _orthogonality(U: Tensor) -> str:
    if U.shape[0] != U.shape[1]:
        return ""
    off = (U.T @ U - torch.eye(len(U), dtype=U.dtype)).norm().item() / math.sqrt(len(U))
    return ", orthogonal" if off < 1e-3 else f", ||U^T U - I|| / sqrt(H) = {off:.2g}"


def _simple(part: Part, slope: float, lag: int | None) -> Finding:
    U = part.block("weight_hh", part.cell.recurrent_gates[0])
    assert U is not None
    most, rho = sigma_1(U), radius(U)
    name = getattr(part.cell, "activation", "tanh")
    rest = slope * rho  # tanh and the logistic function are steepest at 0
    what = f"U has spectral radius {rho:.3f} and sigma_1 {most:.3f}{_orthogonality(U)}"
    where = part.where("weight_hh")
    if most * slope < 1:
        far = LEFT / -math.log(most * slope)
        worry = far < (SHORT if lag is None else lag)
        return Finding(
            "warning" if worry else "note", "recurrent-weights", where, what,
            f"sigma_1 times the largest slope {slope:g} is below 1, so the gradient must vanish (Pascanu 2013): to 1 % "
            f"in {steps(far)} at most.", "initialise U orthogonal or as I, or take a gated cell" if worry else "",
            rho, "spectral radius",
        )  # fmt: skip
    if rho > GROWS.get(name, 2.0):
        kind = (
            f"Where all units are active the state grows by {rho:.2f} a step"
            if name in ("relu", "identity")
            else "Small changes of the state grow until the units saturate, in chaos (Sompolinsky 1988)"
        )
        return Finding(
            "warning", "recurrent-weights", where, what, f"{kind}: the gradient may explode.",
            "scale U down to a spectral radius of about 1, and clip the gradient", rho, "spectral radius",
        )  # fmt: skip
    if rest < 1 - 1e-3:
        far = LEFT / -math.log(rest)
        worry = lag is not None and far < lag
        return Finding(
            "warning" if worry else "note", "recurrent-weights", where, what,
            "sigma_1 alone would say that it may explode; but around h = 0 it contracts, at the spectral radius, to "
            f"1 % in about {steps(far)}. Neither number alone decides: measure the gradient.",
            "initialise U orthogonal or as I, or take a gated cell" if worry else "", rho, "spectral radius",
        )  # fmt: skip
    return Finding(
        "note", "recurrent-weights", where, what,
        "Around h = 0 changes of the state are kept; whether they last is decided by f' on the way. Neither number "
        "alone decides: measure the gradient.", "", rho, "spectral radius",
    )  # fmt: skip


def _at_rest(part: Part, lag: int | None) -> Finding:
    """A gated cell whose state is its memory: the Jacobian of one step at h = 0, x = 0, with the biases as they are.

    For a GRU without biases it is I/2 + U_n/4 (Kanai 2017).
    """
    x = part.weights.weight_ih.new_zeros(1, 1, part.weights.weight_ih.shape[1])
    J = state_jacobian(Recurrence(part.cell, part.weights, x)).steps[0, 0].cpu()
    rho = radius(J)
    U = {gate: part.block("weight_hh", gate) for gate in part.cell.recurrent_gates}
    told = ", ".join(f"U[{gate}] {sigma_1(block):.3f}" for gate, block in U.items() if block is not None)
    what = f"the Jacobian at h = 0 has spectral radius {rho:.3f}, sigma_1 {sigma_1(J):.3f}; sigma_1 of {told}"
    where, gated = part.where("weight_hh"), bool(anatomy(part.cell).gates)
    if rho > 1:
        return Finding(
            "warning" if gated else "note", "stability", where, what,
            "h = 0 is not stable: small changes grow there, and the gradient can jump where a fixed point splits "
            "(Kanai 2017).", "keep sigma_1 of a GRU's U[n] below 2, which keeps it stable, and clip" if gated else "",
            rho, "spectral radius",
        )  # fmt: skip
    far = LEFT / -math.log(rho) if 0 < rho < 1 else math.inf
    worry = lag is not None and far < lag
    return Finding(
        "warning" if worry else "note", "stability", where, what,
        f"h = 0 is stable, and changes of the state fall to 1 % in about {steps(far)} there.",
        "a larger bias of the gate that keeps, or an orthogonal U" if worry else "", rho, "spectral radius",
    )  # fmt: skip


def _blocks(part: Part) -> Finding:
    told = []
    largest = 0.0
    for gate in part.cell.recurrent_gates:
        U = part.block("weight_hh", gate)
        assert U is not None
        largest = max(largest, sigma_1(U))
        told.append(f"U[{gate}] {sigma_1(U):.3f}")
    means = "They act through the gates; the memory is kept by its own factor. No one number decides: measure it."
    what = f"sigma_1: {', '.join(told)}"
    return Finding("note", "recurrent-weights", part.where("weight_hh"), what, means, "", largest, "sigma_1")
