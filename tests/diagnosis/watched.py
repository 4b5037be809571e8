"""What the tests of watching train: small models, the loop of a user, and a clock that only they move."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """A stack of LSTMs with dropout between its layers, and one output a step."""

    def __init__(self, kind: Any = nn.LSTM, layers: int = 2):
        super().__init__()
        self.rnn = kind(3, 6, layers, dropout=0.2 if layers > 1 else 0.0)
        self.out = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0])


class Step(nn.Module):
    """A cell of the user's own: one step a call, which counts its calls and keeps its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 5)
        self.out = nn.Linear(5, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.last: Tensor | None = None

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        h = torch.tanh(self.inner(torch.cat([x, h], -1)))
        self.last = h.detach()
        return self.out(nn.functional.dropout(h, 0.1)), h


def whole(model: nn.Module, x: Tensor) -> Tensor:
    """The loss of a batch."""
    return model(x).square().mean()


def stepwise(model: nn.Module, x: Tensor) -> Tensor:
    """The loss of a batch, the model called a step at a time."""
    h, outs = x.new_zeros(x.shape[1], 5), []
    for x_t in x:
        y, h = model(x_t, h)
        outs.append(y)
    return torch.stack(outs).square().mean()


def train(
    model: nn.Module,
    steps: int = 4,
    loss_of: Callable[[nn.Module, Tensor], Tensor] = whole,
    watching: AbstractContextManager[Any] | None = None,
    after: Callable[[int], None] = lambda n: None,
    length: int = 7,
) -> tuple[Any, list[float]]:
    """A loop as users write it; gives what was watched, and the losses. Random numbers go on from where they are."""
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    with watching or nullcontext() as w:
        for n in range(steps):
            x = torch.randn(length, 4, 3)
            optimiser.zero_grad()
            loss = loss_of(model, x)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimiser.step()
            losses.append(loss.item())
            after(n)
    return w, losses


class Ticks:
    """A clock on which reading it takes `tick` seconds, and all else what `pass_` says."""

    def __init__(self, tick: float = 0.0):
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds
