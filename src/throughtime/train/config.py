"""The options of a language-model run, in one frozen dataclass, checked when it is made."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from throughtime.errors import ConfigError

CHANGEABLE = frozenset(
    {
        "steps",
        "lr",
        "clip_norm",
        "valid_every",
        "valid_windows",
        "checkpoint_every",
        "threads",
        "device",
        "text",
    }
)
"""Options that may differ when a run is continued; the others fix what the model is and what it reads."""

_LARGEST = 2**31 - 1
_WHOLE = {  # name: smallest value allowed
    "embedding": 1,
    "hidden": 1,
    "layers": 1,
    "window": 1,
    "batch": 1,
    "steps": 1,
    "valid_every": 1,
    "valid_windows": 1,
    "checkpoint_every": 1,
    "threads": 0,
    "seed": 0,
}
_CHOICES = {"symbols": ("characters", "bytes"), "optimiser": ("adam", "sgd")}


@dataclass(frozen=True)
class LMConfig:
    """Everything that determines a run of the language-model trainer, except where it is written.

    Raises `ConfigError` when a value makes no sense. Same config, text, torch and number of threads:
    same numbers.
    """

    text: str
    """The text file to learn from."""
    symbols: Literal["characters", "bytes"] = "characters"
    """What the model reads and predicts: the characters of UTF-8 text, or the bytes of any file."""
    cell: str = "lstm"
    """The recurrent cell: lstm, gru, rnn, lstm-peephole, ... (a wrong name lists them all)."""
    embedding: int = 64
    """Size of the vector that stands for a symbol."""
    hidden: int = 128
    """Hidden units in each recurrent layer."""
    layers: int = 1
    """Recurrent layers, one over the other."""
    dropout: float = 0.0
    """Chance that a unit is dropped between layers and before the output; 0 for none."""
    skip: bool = False
    """Connect the input to every layer and every layer to the output (Graves 2013)."""
    window: int = 64
    """Steps of truncated BPTT: the state is carried on from window to window, the gradient is cut."""
    batch: int = 32
    """Streams: the text is cut into this many pieces of equal length that are read side by side."""
    steps: int = 1000
    """Updates of the weights, one window each, counted from the start of the run."""
    lr: float = 2e-3
    """Learning rate."""
    optimiser: Literal["adam", "sgd"] = "adam"
    """How the weights are updated."""
    clip_norm: float = 1.0
    """Longest gradient allowed, by global norm: a longer one is shortened to this; 0 for no clipping."""
    valid_fraction: float = 0.1
    """Part of the text, at its end, that is kept for validation; 0 for no validation."""
    valid_every: int = 100
    """Validate every so many steps, and at the last one."""
    valid_windows: int = 50
    """At most so many windows are read in one validation."""
    checkpoint_every: int = 200
    """Save every so many steps; also at the last step and whenever the validation loss is the best so far."""
    seed: int = 0
    """Seed of the initial weights and of dropout."""
    threads: int = 0
    """CPU threads of torch; 0 leaves torch's own choice."""
    device: str = "cpu"
    """Where to compute, as torch names it: cpu, cuda, cuda:1, ..."""

    def __post_init__(self) -> None:
        for field in fields(LMConfig):
            value = getattr(self, field.name)
            if field.name in _WHOLE:
                _whole(field.name, value, _WHOLE[field.name])
            elif field.type == "float":
                _number(field.name, value)
            elif field.type == "bool" and not isinstance(value, bool):
                raise ConfigError(f"{field.name} must be true or false, got {value!r}")
            elif field.type == "str" and not isinstance(value, str):
                raise ConfigError(f"{field.name} must be a string, got {value!r}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.lr <= 0:
            raise ConfigError(f"lr must be greater than 0, got {self.lr:g}")
        if self.clip_norm < 0:
            raise ConfigError(f"clip_norm must be greater than 0, or 0 for no clipping, got {self.clip_norm:g}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be at least 0 and less than 1, got {self.dropout:g}")
        if not 0 <= self.valid_fraction < 1:
            raise ConfigError(f"valid_fraction must be at least 0 and less than 1, got {self.valid_fraction:g}")

    def digest(self) -> str:
        """A fingerprint of the options that a checkpoint depends on: all but the changeable ones."""
        fixed = {k: v for k, v in asdict(self).items() if k not in CHANGEABLE}
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()

    def changed(self, **changes: Any) -> LMConfig:
        """This config with some options changed, as a continued run may; others raise `ConfigError`."""
        for name, value in changes.items():
            if not hasattr(self, name):
                raise ConfigError(f"there is no option {name!r}; the options are {', '.join(asdict(self))}")
            if name not in CHANGEABLE and value != getattr(self, name):
                raise ConfigError(
                    f"{name} cannot change when a run is continued (it was {getattr(self, name)!r}, got "
                    f"{value!r}); "
                    f"start a new run for that. What can change: {', '.join(sorted(CHANGEABLE))}"
                )
        return replace(self, **changes)


def _whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{name} must be a whole number, got {value!r}")
    if not least <= value <= _LARGEST:
        bound = f"at least {least}" if value < least else f"at most {_LARGEST}"
        raise ConfigError(f"{name} must be {bound}, got {value}")


def _number(name: str, value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ConfigError(f"{name} must be a finite number, got {value!r}")
