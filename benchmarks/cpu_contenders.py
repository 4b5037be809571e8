"""Who runs in the CPU benchmark: our layers, torch's, a loop written by hand, JAX's scan."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.measure import Run

from throughtime import cells
from throughtime.engine.trace import step_of


class Own(cells.Cell):
    """A user's own LSTM-like cell: each unit has a decay of its own, and shows its memory before it is squashed.

    c_t = sigmoid(d) * f_t * c_{t-1} + i_t * tanh(z_g)
    h_t = o_t * softsign(c_t)
    """

    gates = ("i", "f", "g", "o")
    states = ("h", "c")
    units = ("d",)

    def step(self, z, s, w):
        keep = torch.sigmoid(w.d) * torch.sigmoid(z.f)
        c = keep * s.c + torch.sigmoid(z.i) * torch.tanh(z.g)
        return torch.sigmoid(z.o) * c / (1 + torch.abs(c)), c


CELLS: dict[str, Any] = {
    "rnn": cells.Simple,
    "lstm": cells.LSTM,
    "gru": cells.GRU,
    "lstm-peephole": cells.PeepholeLSTM,
    "lstm-1997": cells.LSTM1997,
    "own": Own,
}
PEERS: dict[str, Any] = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}


class Loop(torch.nn.Module):
    """What one writes by hand: the input products at once, `unbind`, and the step in torch.

    `unbind`, for to index xp[t] step by step is quadratic in the backward pass.
    """

    def __init__(self, cell: cells.Cell, size: int):
        super().__init__()
        G, R = len(cell.gates), len(cell.recurrent_gates)
        self.cell, self.size = cell, size
        self.W = torch.nn.Parameter(torch.randn(G * size, size) / size**0.5 / 2)
        self.U = torch.nn.Parameter(torch.randn(R * size, size) / size**0.5 / 2)
        self.b = torch.nn.Parameter(torch.zeros(G * size))
        self.units = torch.nn.ParameterList([torch.zeros(size) for _ in cell.units])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = [x.new_zeros(x.shape[1], self.size) for _ in self.cell.states]
        out = []
        for px in F.linear(x, self.W, self.b).unbind(0):
            ph = F.linear(state[0], self.U)
            xs, hs = px.chunk(len(self.cell.gates), -1), ph.chunk(len(self.cell.recurrent_gates), -1)
            z = []
            for c in self.cell.columns:
                if c.x is not None and c.h is not None:
                    z.append(xs[c.x] + hs[c.h])
                else:
                    z.append(xs[c.x] if c.x is not None else hs[c.h])
            state = list(step_of(self.cell, [*z, *state, *self.units]))
            out.append(state[0])
        return torch.stack(out)


def training_step(module: torch.nn.Module, x: Any, low: bool = False) -> Run:
    """The forward pass, and all gradients from a given one of the output; low: under autocast to bf16."""
    data = x.data if isinstance(x, torch.nn.utils.rnn.PackedSequence) else x
    leaves = [*([data] if data.requires_grad else []), *module.parameters()]

    def output():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            out = module(x)
        out = out[0] if isinstance(out, tuple) and not isinstance(out, torch.nn.utils.rnn.PackedSequence) else out
        return out.data if isinstance(out, torch.nn.utils.rnn.PackedSequence) else out

    given = torch.randn_like(output().detach())

    def run():
        return torch.autograd.grad(output(), leaves, given, allow_unused=True)

    return run


def inference(module: torch.nn.Module, *given: Any) -> Run:
    def run():
        with torch.no_grad():
            return module(*given)

    return run


def without_onednn(run: Run) -> Run:
    def off():
        with torch.backends.mkldnn.flags(enabled=False):
            return run()

    return off


def jax_step(name: str, T: int, B: int, H: int) -> Run | None:
    """A jitted `lax.scan` training step, where JAX is installed; the cells that have a peer in torch.nn."""
    gates = {"rnn": 1, "lstm": 4, "gru": 3}.get(name)
    try:
        import jax
        import jax.numpy as jnp
    except ImportError:
        return None
    if gates is None:
        return None

    def step(weights, state, p):
        h, c = state
        q = h @ weights[1]
        if name == "rnn":
            h = jnp.tanh(p + q)
        elif name == "lstm":
            i, f, g, o = jnp.split(p + q, 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
        else:
            (pr, pu, pn), (qr, qu, qn) = jnp.split(p, 3, -1), jnp.split(q, 3, -1)
            u = jax.nn.sigmoid(pu + qu)
            h = (1 - u) * jnp.tanh(pn + jax.nn.sigmoid(pr + qr) * qn) + u * h
        return (h, c), h

    def forward(weights, x):
        projected = x @ weights[0] + weights[2]
        zeros = jnp.zeros((B, H))
        _, y = jax.lax.scan(lambda s, p: step(weights, s, p), (zeros, zeros), projected)
        return y

    def both(weights, x, given):
        return jax.vjp(forward, weights, x)[1](given)

    key = jax.random.PRNGKey(0)
    weights = (
        jax.random.normal(key, (H, gates * H)) / H**0.5 / 2,
        jax.random.normal(key, (H, gates * H)) / H**0.5 / 2,
        jnp.zeros(gates * H),
    )
    x = jax.random.normal(key, (T, B, H))
    jitted = jax.jit(both)
    return lambda: jax.block_until_ready(jitted(weights, x, x))
