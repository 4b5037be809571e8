"""What the theory of the gradient through time states: each with its formula, its source, and where it is shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Statement:
    """One sentence, its formula, who found it, and the lab's setting in which it can be seen.

    shown: fields of `throughtime.live.lab.Setting`, and with "cell-b" a second cell; "" is none.
    where: the part of the page that shows it: "network", "memory" or "cliff".
    """

    says: str
    formula: str
    source: str
    shown: dict[str, Any] = field(default_factory=dict)
    where: str = "network"


def _setting(a: str, b: str = "", **other: Any) -> dict[str, Any]:
    start = {"units": 24, "steps": 80, "matrix": "gaussian", "radius": 1, "forget": 1, "input": 0.5, "loss": "last",
             "rule": "full"}  # fmt: skip
    return {"cell-a": a, "cell-b": b, **start, **other}


STATEMENTS = (
    Statement(
        "The gradient vanishes exponentially in the lag where the product of the two bounds is below 1.",
        "‖δ(t,k)‖ ≤ (g_u g_f)^(t−k) ‖δ(t,t)‖,  g_u = σ₁(U),  g_f = max |f′|",
        "Hochreiter 1991; Bengio 1994; Pascanu 2013",
        _setting("rnn", matrix="orthogonal", radius=0.8),
    ),
    Statement(
        "Above 1 it may explode, but need not: a saturated tanh holds it down.",
        "product > 1 is necessary, not sufficient",
        "Pascanu 2013",
        _setting("rnn-identity", "rnn", radius=1.3, input=1),
    ),
    Statement(
        "One number misleads: σ₁ is above 1, and yet the network contracts, for its spectral radius is not.",
        "U(−1/√H, 1/√H): spectral radius → 0.577, σ₁ → 1.155",
        "torch's default nn.RNN",
        _setting("rnn-identity", radius=0.577, units=48),
    ),
    Statement(
        "A linear network with orthogonal U hands every gradient back at its full size.",
        "δ(t,k) = Uᵀ δ(t,k+1),  ‖Uᵀ v‖ = ‖v‖",
        "Pascanu 2013",
        _setting("rnn-identity", "rnn", matrix="orthogonal"),
    ),
    Statement(
        "The logistic function passes a quarter of the gradient at most.",
        "f′ = f (1 − f) ≤ 1/4",
        "Hochreiter 1991",
        _setting("rnn-logistic", "rnn", matrix="orthogonal"),
    ),
    Statement(
        "With the state before or after the activation, it is the same network in two conventions.",
        "s_t = U f(s_{t−1}) + W x_t + b",
        "Pascanu 2013",
        _setting("preactivation", "rnn", radius=1.1),
    ),
    Statement(
        "A simple network can be tuned: with U = I and ReLU, what is active passes the gradient unchanged.",
        "diag(f′) Uᵀ ≈ I",
        "Le 2015",
        _setting("rnn-relu", "rnn", matrix="identity"),
    ),
    Statement(
        "A state that is only added to never loses the gradient, and has no feedback.",
        "h_t = h_{t−1} + W g(x_t),  ∂h_t/∂h_{t−1} = I",
        "the additive state",
        _setting("additive-state", "rnn"),
    ),
    Statement(
        "Its memory grows without bound, and what it shows saturates: the gradient is kept, but cannot enter.",
        "c_t = c_{t−1} + W g(x_t),  h_t = tanh(c_t)",
        "the additive memory cell",
        _setting("additive-memory", input=2, steps=120),
    ),
    Statement(
        "Gates protect the memory, and the carousel carries the error with a factor of 1.",
        "c_t = c_{t−1} + i ⊙ tanh(z_g),  ∂c_t/∂c_{t−1} = I along the carousel",
        "Hochreiter & Schmidhuber 1997",
        _setting("lstm-1997", "rnn", rule="truncated"),
    ),
    Statement(
        "The forget gate is the memory's time constant: closed by its bias it forgets, opened it holds.",
        "c_t = f ⊙ c_{t−1} + i ⊙ tanh(z_g),  half-life ln ½ / ln f",
        "Gers 2000; Jozefowicz 2015",
        _setting("lstm", forget=5),
    ),
    Statement(
        "A forget gate closed by its bias: the same cell, and nothing reaches back.",
        "f = σ(−3) ≈ 0.05",
        "Gers 2000",
        _setting("lstm", "rnn", forget=-3),
    ),
    Statement(
        "Peepholes let each gate see its own cell, through one weight a unit.",
        "i = σ(z_i + p_i ⊙ c_{t−1}),  o = σ(z_o + p_o ⊙ c_t)",
        "Gers 2002; Graves 2013",
        _setting("lstm-peephole", "lstm", forget=2),
    ),
    Statement(
        "The GRU has one gate for keeping and writing, and no memory behind its state.",
        "h_t = (1 − u) ⊙ n + u ⊙ h_{t−1}",
        "Cho 2014",
        _setting("gru", "lstm", forget=3),
    ),
    Statement(
        "A label at every step lays its gradients over each other; the map keeps them apart by superposition.",
        "dL/dh_k = Σ_t dL_t/dh_k",
        "Werbos 1990",
        _setting("lstm", forget=2, loss="every"),
    ),
    Statement(
        "The 1997 rule cuts what would flow on through h into the gates: the rest runs along the carousel alone.",
        "∂z_t/∂h_{t−1} := 0",
        "Hochreiter & Schmidhuber 1997",
        _setting("lstm-1997", "lstm-1997", rule="truncated", radius=1.6),
    ),
    Statement(
        "Three gates, each open or shut, make eight regimes: read-only, refresh, store and five more.",
        "(i, f, o) ∈ {0, 1}³",
        "Gers 2000",
        where="memory",
    ),
    Statement(
        "An exploded gradient makes one step too long; shortened to a threshold, it keeps its direction.",
        "g ← g · min(1, θ/‖g‖)",
        "Pascanu 2013",
        where="cliff",
    ),
)
