"""The trainer behind the command line: data, description of a run, models and heads, loop, checkpoints, use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from throughtime.train.config import RunConfig
    from throughtime.train.data import TextData, Vocabulary, read_text
    from throughtime.train.data.saved import save_dataset
    from throughtime.train.drifting import Drift, DriftOf, drift
    from throughtime.train.evaluation import Evaluation, evaluate
    from throughtime.train.exporting import export
    from throughtime.train.forecasting import Forecast, PanelForecast, forecast
    from throughtime.train.histories import History, history
    from throughtime.train.kinds import ForecastConfig, LabelConfig, LMConfig, NotesConfig, TaskConfig
    from throughtime.train.loop import TrainingStopped, TrainResult, load, resume, train
    from throughtime.train.model import LanguageModel, SequenceModel
    from throughtime.train.online import Online
    from throughtime.train.runlog import StepRecord
    from throughtime.train.sampling import generate, stream

_HOME = {
    "Drift": "drifting",
    "DriftOf": "drifting",
    "Evaluation": "evaluation",
    "Forecast": "forecasting",
    "ForecastConfig": "kinds",
    "History": "histories",
    "LMConfig": "kinds",
    "LabelConfig": "kinds",
    "LanguageModel": "model",
    "NotesConfig": "kinds",
    "Online": "online",
    "PanelForecast": "forecasting",
    "RunConfig": "config",
    "SequenceModel": "model",
    "StepRecord": "runlog",
    "TaskConfig": "kinds",
    "TextData": "data",
    "TrainResult": "loop",
    "TrainingStopped": "loop",
    "Vocabulary": "data",
    "drift": "drifting",
    "evaluate": "evaluation",
    "export": "exporting",
    "forecast": "forecasting",
    "generate": "sampling",
    "history": "histories",
    "load": "loop",
    "read_text": "data",
    "resume": "loop",
    "save_dataset": "data.saved",
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
    "Drift",
    "DriftOf",
    "Evaluation",
    "Forecast",
    "ForecastConfig",
    "History",
    "LMConfig",
    "LabelConfig",
    "LanguageModel",
    "NotesConfig",
    "Online",
    "PanelForecast",
    "RunConfig",
    "SequenceModel",
    "StepRecord",
    "TaskConfig",
    "TextData",
    "TrainResult",
    "TrainingStopped",
    "Vocabulary",
    "drift",
    "evaluate",
    "export",
    "forecast",
    "generate",
    "history",
    "load",
    "read_text",
    "resume",
    "save_dataset",
    "stream",
    "train",
]
