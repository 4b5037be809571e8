"""WHAT a step is: the equations of each cell, one small file a family."""

from __future__ import annotations

from collections.abc import Callable

from throughtime.cells.additive import (
    AdditiveMemory,
    AdditiveMemoryFeedback,
    AdditiveState,
    AdditiveStateFeedback,
)
from throughtime.cells.cell import Cell, Column
from throughtime.cells.gru import GRU, GRUResetBefore
from throughtime.cells.lstm import LSTM, LSTM1997, PeepholeLSTM, ProjectedLSTM
from throughtime.cells.simple import PreActivation, Simple
from throughtime.errors import CellError

_BY_NAME: dict[str, Callable[[], Cell]] = {
    "rnn": Simple,
    "rnn-logistic": lambda: Simple("logistic"),
    "rnn-relu": lambda: Simple("relu"),
    "rnn-identity": lambda: Simple("identity"),
    "preactivation": PreActivation,
    "additive-state": AdditiveState,
    "additive-state-feedback": AdditiveStateFeedback,
    "additive-memory": AdditiveMemory,
    "additive-memory-feedback": AdditiveMemoryFeedback,
    "lstm-1997": LSTM1997,
    "lstm": LSTM,
    "lstm-peephole": PeepholeLSTM,
    "gru": GRU,
    "gru-reset-before": GRUResetBefore,
}

NAMES: tuple[str, ...] = tuple(_BY_NAME)


def by_name(name: str) -> Cell:
    """The cell of that name, as the command line spells it; one of `NAMES`."""
    if name not in _BY_NAME:
        raise CellError(f"unknown cell {name!r}; it must be one of {', '.join(NAMES)}")
    return _BY_NAME[name]()


__all__ = [
    "GRU",
    "LSTM",
    "LSTM1997",
    "NAMES",
    "AdditiveMemory",
    "AdditiveMemoryFeedback",
    "AdditiveState",
    "AdditiveStateFeedback",
    "Cell",
    "Column",
    "GRUResetBefore",
    "PeepholeLSTM",
    "PreActivation",
    "ProjectedLSTM",
    "Simple",
    "by_name",
]
