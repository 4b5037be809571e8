"""Modules that a PyTorch user already knows: RNN, LSTM, GRU, the same stack for any cell, and convert()."""

from __future__ import annotations

from throughtime.nn.convert import convert
from throughtime.nn.explain import explain
from throughtime.nn.export import Exported, export
from throughtime.nn.family import (
    LSTM1997,
    AdditiveMemory,
    AdditiveState,
    GRUResetBefore,
    PeepholeLSTM,
    PreActivationRNN,
    TunedRNN,
)
from throughtime.nn.recurrent import Recurrent
from throughtime.nn.torch_like import GRU, LSTM, RNN

__all__ = [
    "GRU",
    "LSTM",
    "LSTM1997",
    "RNN",
    "AdditiveMemory",
    "AdditiveState",
    "Exported",
    "GRUResetBefore",
    "PeepholeLSTM",
    "PreActivationRNN",
    "Recurrent",
    "TunedRNN",
    "convert",
    "explain",
    "export",
]
