"""Small networks that the tests of diagnose() share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """One of torch's recurrent layers and a linear output."""

    def __init__(self, kind: str = "RNN", D: int = 1, H: int = 16, K: int = 1, **options):
        super().__init__()
        self.rnn = getattr(nn, kind)(D, H, **options)
        self.out = nn.Linear(H * (2 if options.get("bidirectional") else 1), K)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0])


class EncoderDecoder(nn.Module):
    """The encoder's last state is where the decoder begins."""

    def __init__(self, V: int = 8, H: int = 24):
        super().__init__()
        self.embed = nn.Embedding(V, 8)
        self.encoder, self.decoder = nn.LSTM(8, H), nn.LSTM(8, H)
        self.out = nn.Linear(H, V)

    def forward(self, source: Tensor, shifted: Tensor) -> Tensor:
        state = self.encoder(self.embed(source))[1]
        return self.out(self.decoder(self.embed(shifted), state)[0])


class OwnStep(nn.Module):
    """A cell of the user's own, of linear layers."""

    def __init__(self, D: int = 1, H: int = 16):
        super().__init__()
        self.inner = nn.Linear(D + H, H)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.inner(torch.cat([x, h], -1)))


class OwnLoop(nn.Module):
    """A loop over it, batch first."""

    def __init__(self, D: int = 1, H: int = 16, K: int = 1):
        super().__init__()
        self.step, self.out = OwnStep(D, H), nn.Linear(H, K)

    def forward(self, x: Tensor) -> Tensor:
        h, seen = x.new_zeros(x.shape[0], self.out.in_features), []
        for t in range(x.shape[1]):
            h = self.step(x[:, t], h)
            seen.append(self.out(h))
        return torch.stack(seen, 1)


@torch.no_grad()
def planted(g: float, kind: str = "RNN", H: int = 24) -> Net:
    """A network whose recurrent weights are g times an orthogonal matrix, and that hardly feels its input."""
    net = Net(kind, H=H)
    net.rnn.weight_hh_l0.copy_(g * torch.linalg.qr(torch.randn(H, H))[0])
    net.rnn.weight_ih_l0.mul_(0.01)
    net.rnn.bias_ih_l0.zero_()
    net.rnn.bias_hh_l0.zero_()
    return net


@torch.no_grad()
def long_memory(net: Net, T: int) -> Net:
    """Sets an LSTM's biases for memories of up to T steps (Tallec & Ollivier 2018), both vectors together."""
    H = net.rnn.hidden_size
    forget = (1 + (T - 2) * torch.rand(H)).log()
    net.rnn.bias_hh_l0.zero_()
    net.rnn.bias_ih_l0[:H] = -forget
    net.rnn.bias_ih_l0[H : 2 * H] = forget
    return net


def per_symbol(out: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy at every step."""
    return nn.functional.cross_entropy(out.flatten(0, 1), y.flatten())


mse = nn.functional.mse_loss
