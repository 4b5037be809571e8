"""What the theory states of cells, of gates and the carousel, and of cures."""

from __future__ import annotations

from throughtime.live.statement import Statement, setting

CELLS = (
    Statement(
        "A simple network can be tuned: with U = I and ReLU, what is active passes the gradient unchanged.",
        "diag(f′) Uᵀ ≈ I",
        "Le 2015",
        setting("rnn-relu", "rnn", matrix="identity"),
    ),
    Statement(
        "A state that is only added to never loses the gradient, and has no feedback.",
        "h_t = h_{t−1} + W g(x_t),  ∂h_t/∂h_{t−1} = I",
        "the additive state",
        setting("additive-state", "rnn"),
    ),
    Statement(
        "Its memory grows without bound, and what it shows saturates: the gradient is kept, but cannot enter.",
        "c_t = c_{t−1} + W g(x_t),  h_t = tanh(c_t)",
        "the additive memory cell",
        setting("additive-memory", input=2, steps=120),
    ),
    Statement(
        "Peepholes let each gate see its own cell, through one weight a unit.",
        "i = σ(z_i + p_i ⊙ c_{t−1}),  o = σ(z_o + p_o ⊙ c_t)",
        "Gers 2002; Graves 2013",
        setting("lstm-peephole", "lstm", forget=2),
    ),
    Statement(
        "The GRU has one gate for keeping and writing, and no memory behind its state.",
        "h_t = (1 − u) ⊙ n + u ⊙ h_{t−1}",
        "Cho 2014",
        setting("gru", "lstm", forget=3),
    ),
    Statement(
        "The GRU's reset gate may act after the product with U, as in torch, or before it.",
        "n = tanh(W x + r ⊙ (U h + b)),  or tanh(W x + U (r ⊙ h) + b)",
        "Cho 2014",
        setting("gru", "gru-reset-before", forget=2),
    ),
    Statement(
        "At rest, and without biases, half of a GRU's state is kept and a quarter of its candidate's U is added.",
        "h = 0, x = 0:  J = I/2 + U_n/4",
        "from the equations of Cho 2014",
        setting("gru", forget=0, input=0),
    ),
    Statement(
        "With skip connections the loss reaches every layer by a way of its own.",
        "h⁽ⁿ⁾ = layer([x, h⁽ⁿ⁻¹⁾]),  y = [h⁽¹⁾ … h⁽ᴺ⁾]",
        "Graves 2013",
        {"cell": "rnn", "layers": 8, "size": 0.5, "skip": "yes"},
        "depth",
    ),
    Statement(
        "Read in both directions, a step knows what was and what comes; each gradient fades along its own way.",
        "y_t = [→h_t, ←h_t],  ∂y_t/∂x_k by →h for k ≤ t, by ←h for k ≥ t",
        "Schuster & Paliwal 1997",
        {"cell": "rnn", "read": "output", "place": 30, "radius": 0.9},
        "directions",
    ),
    Statement(
        "The last output holds the first of the backward direction: it has read one step only.",
        "y_T = [→h_T, ←h_T],  ←h_T = f(W′ x_T)",
        "from the equations of Schuster & Paliwal 1997",
        {"cell": "lstm", "read": "last", "place": 59, "radius": 0.9},
        "directions",
    ),
)

GATES = (
    Statement(
        "Gates protect the memory, and the carousel carries the error with a factor of 1.",
        "c_t = c_{t−1} + i ⊙ tanh(z_g),  ∂c_t/∂c_{t−1} = I along the carousel",
        "Hochreiter & Schmidhuber 1997",
        setting("lstm-1997", "rnn", rule="truncated"),
    ),
    Statement(
        "The forget gate is the memory's time constant: closed by its bias it forgets, opened it holds.",
        "c_t = f ⊙ c_{t−1} + i ⊙ tanh(z_g),  half-life ln ½ / ln f",
        "Gers 2000; Jozefowicz 2015",
        setting("lstm", forget=5),
    ),
    Statement(
        "A forget gate closed by its bias: the same cell, and nothing reaches back.",
        "f = σ(−3) ≈ 0.05",
        "Gers 2000",
        setting("lstm", "rnn", forget=-3),
    ),
    Statement(
        "Three gates, each open or shut, make eight regimes: read-only, refresh, store and five more.",
        "(i, f, o) ∈ {0, 1}³",
        "Gers 2000",
        where="memory",
    ),
    Statement(
        "The carousel's part of the gradient is diag(f); the rest runs through h and the gates.",
        "∂c_t/∂c_{t−1} = diag(f_t) + what goes through h",
        "Gers 2000",
        setting("lstm", rule="truncated", forget=3),
    ),
    Statement(
        "The 1997 rule cuts what would flow on through h into the gates: the rest runs along the carousel alone.",
        "∂z_t/∂h_{t−1} := 0",
        "Hochreiter & Schmidhuber 1997",
        setting("lstm-1997", "lstm-1997", rule="truncated", radius=1.6),
    ),
)

CURES = (
    Statement(
        "Clipped inside the recurrence, no derivative grows on its way back; the direction changes.",
        "∂L/∂z ← clip(∂L/∂z, −θ, θ)",
        "Graves 2013",
        {"cell": "rnn-identity", "radius": 1.15, "steps": 60, "threshold": 0.5},
        "inside",
    ),
    Statement(
        "Clipped by value a gradient turns; by norm it keeps its direction.",
        "g ← clip(g, −θ, θ)",
        "Mikolov 2012",
        {"cell": "rnn", "radius": 1.3, "steps": 40, "threshold": -1},
        "inside",
    ),
    Statement(
        "A threshold can follow the norm's own history.",
        "θ_t = percentile_p(‖g_1‖ … ‖g_t‖)",
        "Seetharaman 2020 (AutoClip)",
        {"rule": "auto", "fixed": 1.5, "falls": 2, "spikes": 4},
        "thresholds",
    ),
    Statement(
        "Or clip only what stands out from the running mean.",
        "z_t = (‖g_t‖ − μ)/σ",
        "Kumar 2025 (ZClip)",
        {"rule": "z", "fixed": 1.5, "falls": 2, "spikes": 4},
        "thresholds",
    ),
    Statement(
        "A bias of 1 opens the forget gate at the start; chrono spreads the units' memories.",
        "b_f = 1;  b_f = ln U(1, T_max − 1)",
        "Jozefowicz 2015; Tallec & Ollivier 2018",
        {"bias": 1, "longest": 100},
        "gates",
    ),
    Statement(
        "A penalty can hold every step of the error at its length.",
        "Ω = Σ (‖e ∂s_t/∂s_{t−1}‖/‖e‖ − 1)²",
        "Pascanu 2013",
        {"penalty": "omega", "taken": 4, "radius": 0.5, "rate": -0.5},
        "penalties",
    ),
    Statement(
        "Or drive the Lyapunov exponents to 0.",
        "Σ λ_i²",
        "Engelken 2023 (gradient flossing)",
        {"penalty": "flossing", "taken": 4, "radius": 0.5, "rate": -0.5},
        "penalties",
    ),
    Statement(
        "Truncated back-propagation carries the state on and cuts the graph; its window must pass the horizon.",
        "s_0 := s_T,  ∂s_0/∂s_T := 0",
        "Williams & Peng 1990",
        {"cell": "lstm", "length": 16, "radius": 0.8, "carried": "yes"},
        "window",
    ),
    Statement(
        "Noise in training keeps a network stable that feeds on its own output.",
        "trained on x + noise;  then x_{t+1} := y_t",
        "Graves 2013; Jaeger 2001",
        {"noise": -3, "weights": 0, "radius": 0.9, "seed": 0},
        "generating",
    ),
)
