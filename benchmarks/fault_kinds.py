"""The small models of the fault injection: every kind of recurrence that the guard meets, each with a linear head."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import throughtime as tt

T, B, D, H = 9, 4, 3, 5
Hook = Callable[[Tensor], Tensor]


class Layer(nn.Module):
    """A fused layer of torch's or ours; packed, or batch first, as it says."""

    def __init__(self, layer: nn.Module, packed: bool = False):
        super().__init__()
        self.layer, self.packed = layer, packed
        self.lengths = torch.tensor([5, 9, 3, 7])

    def forward(self, x: Tensor) -> Tensor:
        if self.packed:
            y, _ = self.layer(pack_padded_sequence(x, self.lengths, enforce_sorted=False))
            return pad_packed_sequence(y)[0]
        if self.layer.batch_first:
            return self.layer(x.transpose(0, 1))[0].transpose(0, 1)
        return self.layer(x)[0]


class CellLoop(nn.Module):
    """A loop over one of torch's cells."""

    def __init__(self, cell: nn.Module):
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state, out = None, []
        for step in x:
            state = self.cell(step, state)
            out.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(out)


class TwoCells(nn.Module):
    """Two cells over each other in one loop; the place of a fault below or above is told by the module's name."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.cell = nn.LSTMCell(D, H), nn.GRUCell(H, H)

    def forward(self, x: Tensor) -> Tensor:
        below, h, out = None, None, []
        for step in x:
            below = self.below(step, below)
            h = self.cell(below[0], h)
            out.append(h)
        return torch.stack(out)


class OwnStep(nn.Module):
    """One step of a user's own recurrence, with modules of its own inside."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.back = nn.Linear(D, H), nn.Linear(H, H, bias=False)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return 0.5 * h + 0.5 * torch.tanh(self.into(x) + self.back(h))


class OwnLSTMStep(nn.Module):
    """One step of an LSTM written by hand, with a state of two parts and weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.W, self.U = nn.Parameter(torch.randn(4 * H, D) / 2), nn.Parameter(torch.randn(4 * H, H) / 3)
        self.b = nn.Parameter(torch.zeros(4 * H))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, g, o = (x @ self.W.T + h @ self.U.T + self.b).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class OwnLoop(nn.Module):
    """The loop over a step of the user's own, of one state or two."""

    def __init__(self, cell: nn.Module, two: bool = False):
        super().__init__()
        self.cell, self.two = cell, two

    def forward(self, x: Tensor) -> Tensor:
        zero, out = x.new_zeros(x.shape[1], H), []
        state = (zero, zero) if self.two else zero
        for step in x:
            state = self.cell(step, state)
            out.append(state[0] if self.two else state)
        return torch.stack(out)


class OwnEquations(nn.Module):
    """All in one forward, without a module for the step: what the recorder cannot look into but by the line."""

    def __init__(self) -> None:
        super().__init__()
        self.W, self.U = nn.Parameter(torch.randn(H, D) / 2), nn.Parameter(torch.randn(H, H) / 3)

    def forward(self, x: Tensor) -> Tensor:
        h, out = x.new_zeros(x.shape[1], H), []
        for step in x:
            h = torch.tanh(step @ self.W.T + h @ self.U.T)
            out.append(h)
        return torch.stack(out)


KINDS: dict[str, Callable[[], nn.Module]] = {
    "RNN tanh, 2 layers": lambda: Layer(nn.RNN(D, H, 2)),
    "RNN relu": lambda: Layer(nn.RNN(D, H, nonlinearity="relu")),
    "RNN, bidirectional, batch first": lambda: Layer(nn.RNN(D, H, 2, bidirectional=True, batch_first=True)),
    "LSTM, 2 layers": lambda: Layer(nn.LSTM(D, H, 2)),
    "LSTM, bidirectional": lambda: Layer(nn.LSTM(D, H, bidirectional=True)),
    "LSTM, packed": lambda: Layer(nn.LSTM(D, H), packed=True),
    "LSTM, batch first": lambda: Layer(nn.LSTM(D, H, batch_first=True)),
    "LSTM with a projection": lambda: Layer(nn.LSTM(D, 2 * H, proj_size=H)),
    "GRU, 2 layers, dropout": lambda: Layer(nn.GRU(D, H, 2, dropout=0.3)),
    "GRU, bidirectional, packed": lambda: Layer(nn.GRU(D, H, 2, bidirectional=True), packed=True),
    "LSTMCell in a loop": lambda: CellLoop(nn.LSTMCell(D, H)),
    "GRUCell in a loop": lambda: CellLoop(nn.GRUCell(D, H)),
    "RNNCell in a loop": lambda: CellLoop(nn.RNNCell(D, H)),
    "two cells in a loop": TwoCells,
    "throughtime RNN": lambda: Layer(tt.nn.RNN(D, H, nonlinearity="relu")),
    "throughtime LSTM, 2 layers": lambda: Layer(tt.nn.LSTM(D, H, 2)),
    "throughtime LSTM, bidirectional": lambda: Layer(tt.nn.LSTM(D, H, bidirectional=True)),
    "throughtime GRU, packed": lambda: Layer(tt.nn.GRU(D, H), packed=True),
    "throughtime LSTM, skip connections": lambda: Layer(tt.nn.Recurrent("lstm", D, H, 2, skip=True)),
    **{f"throughtime {n}": lambda n=n: Layer(tt.nn.Recurrent(n, D, H, batch_first=True)) for n in tt.cells.NAMES},
    "own module in a loop": lambda: OwnLoop(OwnStep()),
    "own LSTM step in a loop": lambda: OwnLoop(OwnLSTMStep(), two=True),
    "own equations": OwnEquations,
}
WITHOUT_STEPS = {"own equations"}
"""Kinds of which no time step can be known, for nothing in the model is called once a step."""
WRITTEN_OUT = (
    "RNN tanh, 2 layers",
    "RNN, bidirectional, batch first",
    "LSTM, 2 layers",
    "LSTM, bidirectional",
    "LSTM, batch first",
    "LSTMCell in a loop",
    "GRUCell in a loop",
    "RNNCell in a loop",
    "throughtime LSTM, 2 layers",
    "throughtime LSTM, bidirectional",
)
"""Kinds that `benchmarks.fault_oracle` knows the equations of, and whose gradient grows at rest."""


class Model(nn.Module):
    """A recurrence and a linear map of its output; `hook`, if set, is put on the gradient between the two."""

    def __init__(self, kind: str):
        super().__init__()
        self.core = KINDS[kind]()
        with torch.no_grad():
            width = self.core(torch.zeros(T, B, D)).shape[-1]
        self.head = nn.Linear(width, 2)
        self.hook: Hook | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.core(x)
        if self.hook is not None and y.requires_grad:
            y.register_hook(self.hook)
        return self.head(y)

    @property
    def lengths(self) -> list[int]:
        """The number of steps of each sequence."""
        packed = isinstance(self.core, Layer) and self.core.packed
        return self.core.lengths.tolist() if packed else [T] * B

    @property
    def reads_input(self) -> str:
        """The module that is the first to read the input."""
        return next((f"core.{n}" for n in ("layer", "below", "cell") if hasattr(self.core, n)), "core")

    @property
    def gives_output(self) -> str:
        """The module that made the very tensor that the head reads, and that `hook` is on."""
        as_it_is = isinstance(self.core, Layer) and not self.core.packed and not self.core.layer.batch_first
        return "core.layer" if as_it_is else "core"
