"""What the theory of the gradient through time states, under its headings; each statement can be seen in the lab."""

from __future__ import annotations

from dataclasses import replace

from throughtime.live.statement import Statement, setting
from throughtime.live.statements_of_cells import CELLS, CURES, GATES

_BACK = (
    Statement(
        "The error goes back one step at a time, each time through the slope of f and the transpose of U.",
        "δ(t,t) = diag(f′) ∂L_t/∂h_t,  δ(t,k) = diag(f′(z_k)) Uᵀ δ(t,k+1)",
        "Werbos 1990",
        setting("rnn"),
    ),
    Statement(
        "What each step adds makes up one gradient, shared out by loss, by step of the past, by lag or by unit.",
        "∂L/∂U = Σ_t Σ_{k≤t} δ(t,k) h_{k−1}ᵀ",
        "Werbos 1990",
        {"cell": "rnn", "parameter": "weight_hh", "radius": 1},
        "adding",
    ),
    Statement(
        "The state is all that is carried: with c held constant an LSTM seems to forget at once.",
        "s = (h, c),  J is 2H × 2H",
        "the total derivative, Werbos 1990",
        {"forget": 5, "radius": 0.5, "length": 100},
        "whole",
    ),
    Statement(
        "A label at every step lays its gradients over each other; the map keeps them apart by superposition.",
        "dL/dh_k = Σ_t dL_t/dh_k",
        "Werbos 1990",
        setting("lstm", forget=2, loss="every"),
    ),
    Statement(
        "With the state before or after the activation, it is the same network in two conventions.",
        "s_t = U f(s_{t−1}) + W x_t + b",
        "Pascanu 2013",
        setting("preactivation", "rnn", radius=1.1),
    ),
)

_VANISH = (
    Statement(
        "The gradient vanishes exponentially in the lag where the product of the two bounds is below 1.",
        "‖δ(t,k)‖ ≤ (g_u g_f)^(t−k) ‖δ(t,t)‖,  g_u = σ₁(U),  g_f = max |f′|",
        "Hochreiter 1991; Bengio 1994; Pascanu 2013",
        setting("rnn", matrix="orthogonal", radius=0.8),
    ),
    Statement(
        "Above 1 it may explode, but need not: a saturated tanh holds it down.",
        "product > 1 is necessary, not sufficient",
        "Pascanu 2013",
        setting("rnn-identity", "rnn", radius=1.3, input=1),
    ),
    Statement(
        "One number misleads: σ₁ is above 1, and yet the network contracts, for its spectral radius is not.",
        "U(−1/√H, 1/√H): spectral radius → 0.577, σ₁ → 1.155",
        "torch's default nn.RNN",
        setting("rnn-identity", radius=0.577, units=48),
    ),
    Statement(
        "A linear network with orthogonal U hands every gradient back at its full size.",
        "δ(t,k) = Uᵀ δ(t,k+1),  ‖Uᵀ v‖ = ‖v‖",
        "Pascanu 2013",
        setting("rnn-identity", "rnn", matrix="orthogonal"),
    ),
    Statement(
        "The logistic function passes a quarter of the gradient at most.",
        "f′ = f (1 − f) ≤ 1/4",
        "Hochreiter 1991",
        setting("rnn-logistic", "rnn", matrix="orthogonal"),
    ),
    Statement(
        "A vanished gradient leaves the weight where it is: the update stalls.",
        "W − a·g ≈ W;  watch a·‖g‖ / ‖W‖",
        "the size of a healthy step: Karpathy 2015",
        {"cell": "rnn", "radius": 0.5, "steps": 60, "rate": -2},
        "update",
    ),
    Statement(
        "An exploded one leaves no number to step by: Inf or NaN, and training goes back to a checkpoint.",
        "‖g‖ > 3.4·10³⁸ is Inf in float32",
        "Pascanu 2013",
        {"cell": "rnn-identity", "radius": 3, "steps": 160, "rate": -2},
        "update",
    ),
    Statement(
        "An exploded gradient makes one step too long; shortened to a threshold, it keeps its direction.",
        "g ← g · min(1, θ/‖g‖)",
        "Pascanu 2013",
        where="cliff",
    ),
    Statement(
        "The same product runs over layers instead of time.",
        "∂L/∂h⁽ˡ⁾ = Π diag(f′) W⁽ⁿ⁾",
        "the depth-wise form of Hochreiter 1991",
        {"cell": "rnn", "layers": 8, "size": 0.8, "skip": "no"},
        "depth",
    ),
    Statement(
        "Even where nothing vanishes, a longer memory makes h more sensitive to its parameter.",
        "E(∂h/∂a)² = (1 + a²)/(1 − a²)³",
        "Zucchet & Orvieto 2024",
        {"decay": 1.5, "steps": 300, "seed": 0},
        "curse",
    ),
)

_HORIZONS = (
    Statement(
        "A vanished gradient alone does not tell whether the weights are wrong or the data hold nothing so far back.",
        "gradient < data: cure the network;  data small: nothing to remember",
        "the three horizons",
        {"lag": 20, "cell": "rnn", "radius": 0.7, "readout": "fitted"},
        "telling",
    ),
    Statement(
        "Where it arrives and is not used, training is not done, or there are too few units.",
        "gradient ≥ data > use",
        "use: Khandelwal 2018",
        {"lag": 20, "cell": "rnn", "radius": 1, "readout": "drawn"},
        "telling",
    ),
)

_GROUPED = {
    "Back through time": _BACK,
    "Vanishing and exploding": _VANISH,
    "The three horizons": _HORIZONS,
    "Cells, from the simplest on": CELLS,
    "Gates and the carousel": GATES,
    "Cures": CURES,
}
GROUPS = tuple(_GROUPED)
"""The headings, in the order of the page."""
STATEMENTS = tuple(replace(s, group=title) for title, listed in _GROUPED.items() for s in listed)
