"""Random problems as the backends take them, and both backends' results by name."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from throughtime.engine import cpu, torch_backend
from throughtime.engine.rules import with_rule
from throughtime.engine.tape import Tape
from throughtime.engine.trace import trace

from ..problems import ALL


@dataclass
class Problem:
    """One tape and the tensors it runs on."""

    tape: Tape
    x: Tensor
    W: Tensor
    U: Tensor
    b: Tensor
    units: list[Tensor]
    matrices: list[Tensor]
    states: list[Tensor]
    lengths: Tensor | None
    reverse: bool
    truncated: bool
    d_sequences: list[Tensor]
    d_finals: list[Tensor]

    def results(self, backend=cpu) -> dict[str, Tensor]:
        """Everything a forward and a backward pass give, by name."""
        weights = (self.x, self.W, self.U, self.b, self.units, self.matrices, self.states, self.lengths)
        sequences, finals, saved = backend.forward(self.tape, *weights, self.reverse, True)
        grads = backend.backward(
            self.tape, *weights, sequences, saved, self.d_sequences, self.d_finals, self.reverse, self.truncated, True
        )
        names = self.tape.names("s")
        units, matrices = self.tape.names("w"), self.tape.names("m")
        labels = ["x", "W", "U", "b", *units, *matrices, *(f"first {n}" for n in names)]
        return {
            **{f"sequence {n}": v for n, v in zip(names, sequences, strict=True)},
            **{f"last {n}": v for n, v in zip(names, finals, strict=True)},
            **{f"gradient of {n}": v for n, v in zip(labels, grads, strict=True)},
        }


def problem(
    name, T, B, D, H, *, lengths=False, reverse=False, clip=None, truncated=False, only_h=False, dtype=torch.float64
) -> Problem:  # fmt: skip
    cell = ALL[name]()
    tape = with_rule(trace(cell), clip, truncated)
    P = (H + 1) // 2 if name == "lstm-projected" else H
    # The first state of the user's own cell is not multiplied by U; its own matrix makes it.
    blocks = [c.x for c in tape.columns if c.x is not None], [c.h for c in tape.columns if c.h is not None]
    X, R = (max(b, default=-1) + 1 for b in blocks)

    def draw(*shape):
        scale = 0.8 / shape[-1] ** 0.5 if len(shape) == 2 else 0.5
        return torch.randn(*shape, dtype=dtype) * scale

    states = [draw(B, P if k == 0 else H) for k in range(len(tape.names("s")))]
    given = torch.randint(1, T + 1, (B,)) if lengths else None
    d_sequences = [torch.randn(T, *s.shape, dtype=dtype) for s in states]
    if only_h:  # as autograd gives it where the loss does not see the memory cell
        d_sequences[1:] = [torch.zeros((), dtype=dtype).expand(d.shape) for d in d_sequences[1:]]
    return Problem(
        tape, draw(T, B, D), draw(X * H, D), draw(R * H, P), draw(len(tape.columns) * H),
        [draw(H) for _ in tape.names("w")], [draw(P, H) if m in ("W_hr", "V") else draw(H, P) for m in tape.names("m")],
        states, given, reverse, truncated, d_sequences, [torch.randn_like(s) for s in states],
    )  # fmt: skip


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-11) -> None:
    assert ours.keys() == theirs.keys()
    for name, v in theirs.items():
        assert ours[name].dtype == v.dtype, name
        scale = max(1.0, float(v.abs().max())) if v.numel() else 1.0
        torch.testing.assert_close(ours[name], v, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}")


def assert_same_as_torch(p: Problem, tolerance: float = 1e-11) -> None:
    assert_close(p.results(), p.results(torch_backend), tolerance)
