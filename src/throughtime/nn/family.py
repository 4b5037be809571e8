"""The family by name: Recurrent with the cell already chosen, for the cells that torch has not."""

from __future__ import annotations

from typing import Any

import torch

from throughtime import cells
from throughtime.nn.recurrent import Recurrent


class PeepholeLSTM(Recurrent):
    """LSTM with diagonal peepholes (Gers 2002; Graves 2013): `cells.PeepholeLSTM`. Options as for `Recurrent`."""

    def __init__(self, input_size: int, hidden_size: int, *args: Any, **options: Any) -> None:
        super().__init__(cells.PeepholeLSTM(), input_size, hidden_size, *args, **options)


class LSTM1997(Recurrent):
    """The first LSTM, without a forget gate (Hochreiter & Schmidhuber 1997): `cells.LSTM1997`.

    With truncated=True it is trained as its authors trained it. Options as for `Recurrent`.
    """

    def __init__(self, input_size: int, hidden_size: int, *args: Any, **options: Any) -> None:
        super().__init__(cells.LSTM1997(), input_size, hidden_size, *args, **options)


class GRUResetBefore(Recurrent):
    """GRU with the reset before the recurrent product (Cho 2014): `cells.GRUResetBefore`.

    Options as for `Recurrent`.
    """

    def __init__(self, input_size: int, hidden_size: int, *args: Any, **options: Any) -> None:
        super().__init__(cells.GRUResetBefore(), input_size, hidden_size, *args, **options)


class PreActivationRNN(Recurrent):
    """The simple network whose state, and output y, is its net input (Pascanu 2013): `cells.PreActivation`.

    activation: "tanh", "logistic", "relu" or "identity". Other options as for `Recurrent`.
    """

    def __init__(self, input_size: int, hidden_size: int, *args: Any, activation: str = "tanh", **options: Any) -> None:
        super().__init__(cells.PreActivation(activation), input_size, hidden_size, *args, **options)


class AdditiveState(Recurrent):
    """A state that is only added to: `cells.AdditiveState`, or with feedback=True `cells.AdditiveStateFeedback`.

        h_t = h_{t-1} + W g(x_t) + b           with feedback: h_t = h_{t-1} + g(W x_t + b + U h_{t-1})

    g: "tanh", "logistic", "relu" or "identity". Other options as for `Recurrent`.
    """

    def __init__(
        self, input_size: int, hidden_size: int, *args: Any, feedback: bool = False, g: str = "tanh", **options: Any
    ) -> None:
        cell = cells.AdditiveStateFeedback(g) if feedback else cells.AdditiveState(g)
        super().__init__(cell, input_size, hidden_size, *args, **options)


class AdditiveMemory(Recurrent):
    """A memory cell that is only added to, behind a tanh: `cells.AdditiveMemory`, or with feedback=True
    `cells.AdditiveMemoryFeedback`.

        h_t = tanh(c_t)
        c_t = c_{t-1} + W g(x_t) + b           with feedback: c_t = c_{t-1} + g(W x_t + b + U h_{t-1})

    g: "tanh", "logistic", "relu" or "identity". Other options as for `Recurrent`.
    """

    def __init__(
        self, input_size: int, hidden_size: int, *args: Any, feedback: bool = False, g: str = "tanh", **options: Any
    ) -> None:
        cell = cells.AdditiveMemoryFeedback(g) if feedback else cells.AdditiveMemory(g)
        super().__init__(cell, input_size, hidden_size, *args, **options)


class TunedRNN(Recurrent):
    """The simple network tuned by its initialisation (Le 2015): ReLU and U = I, so that diag(f') U^T is near I.

        h_t = relu(W x_t + b + U h_{t-1}),   at the start U = I, b = 0, W ~ N(0, 0.001^2)

    orthogonal: a random orthogonal U instead of I. Other options as for `Recurrent`.
    """

    std = 0.001

    def __init__(self, input_size: int, hidden_size: int, *args: Any, orthogonal: bool = False, **options: Any) -> None:
        self.orthogonal = orthogonal
        super().__init__(cells.Simple("relu"), input_size, hidden_size, *args, **options)

    def reset_parameters(self) -> None:
        """Sets every U to I, or draws it orthogonal; every bias to 0; and draws every W from N(0, 0.001^2)."""
        for name, p in self.named_parameters():
            if name.startswith("bias"):
                torch.nn.init.zeros_(p)
            elif name.startswith("weight_ih"):
                torch.nn.init.normal_(p, 0.0, self.std)
            elif self.orthogonal:
                torch.nn.init.orthogonal_(p)
            else:
                torch.nn.init.eye_(p)


FAMILY: tuple[type[Recurrent], ...] = (
    PeepholeLSTM,
    LSTM1997,
    GRUResetBefore,
    PreActivationRNN,
    AdditiveState,
    AdditiveMemory,
    TunedRNN,
)
