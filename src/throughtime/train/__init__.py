"""The trainer behind the command line: data, loop, checkpoints, generation."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from throughtime.train.config import LMConfig
    from throughtime.train.data import TextData, Vocabulary, read_text
    from throughtime.train.loop import TrainingStopped, TrainResult, load, resume, train
    from throughtime.train.model import LanguageModel
    from throughtime.train.runlog import StepRecord
    from throughtime.train.sampling import generate, stream

_HOME = {
    "LMConfig": "config",
    "LanguageModel": "model",
    "StepRecord": "runlog",
    "TextData": "data",
    "TrainResult": "loop",
    "TrainingStopped": "loop",
    "Vocabulary": "data",
    "generate": "sampling",
    "load": "loop",
    "read_text": "data",
    "resume": "loop",
    "stream": "sampling",
    "train": "loop",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `throughtime --help` need not import torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


__all__ = [
    "LMConfig",
    "LanguageModel",
    "StepRecord",
    "TextData",
    "TrainResult",
    "TrainingStopped",
    "Vocabulary",
    "generate",
    "load",
    "read_text",
    "resume",
    "stream",
    "train",
]
