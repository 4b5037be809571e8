"""The description of a run that every kind shares: model and loop, in a frozen dataclass, checked when it is made."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_type_hints

from throughtime.errors import ConfigError

Self = TypeVar("Self", bound="RunConfig")
_LARGEST = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that determines a run, except where it is written; each kind of data adds what it needs.

    Raises `ConfigError` when a value makes no sense. Same config, data, torch and number of threads: same numbers.
    """

    kind: ClassVar[str]
    source: ClassVar[str]
    """The option that names the data."""
    movable: ClassVar[bool] = True
    """Whether the same data may be found under another name when a run is continued."""
    least: ClassVar[Mapping[str, int]] = {
        "embedding": 0, "hidden": 1, "layers": 1, "window": 1, "batch": 1, "accumulate": 1, "steps": 1, "warmup": 0,
        "valid_every": 1, "valid_windows": 1, "patience": 0, "checkpoint_every": 1, "threads": 0, "seed": 0,
    }  # fmt: skip
    """Whole numbers: the smallest value allowed."""
    changeable: ClassVar[frozenset[str]] = frozenset({
        "steps", "lr", "schedule", "warmup", "clip_norm", "valid_every", "valid_windows", "patience",
        "checkpoint_every", "threads", "device", "precision", "guard", "watch_budget", "compile",
        "input_noise",
    })  # fmt: skip
    """Options that may differ when a run is continued; the others fix what the model is and what it reads."""

    cell: str = "lstm"
    """The recurrent cell: lstm, gru, rnn, lstm-peephole, ... (a wrong name lists them all)."""
    embedding: int = 0
    """Size of the vector that the inputs of a step are mapped to; with 0, numbers go in as they are."""
    hidden: int = 128
    """Hidden units in each recurrent layer."""
    layers: int = 1
    """Recurrent layers, one over the other."""
    dropout: float = 0.0
    """Chance that a unit is dropped between layers and before the output; 0 for none."""
    skip: bool = False
    """Connect the input to every layer and every layer to the output (Graves 2013)."""
    input_noise: float = 0.0
    """Noise on the inputs while training, for a model that is to read its own output: the deviation of what is added
    to numbers (Graves 2013), or the chance that a symbol is replaced by another one of the window (Xie 2017)."""
    window: int = 64
    """Steps of truncated BPTT: the state is carried on from window to window, the gradient is cut."""
    batch: int = 32
    """Sequences, or pieces of one long sequence, that are read side by side."""
    accumulate: int = 1
    """Windows whose gradients are added up to one update."""
    steps: int = 1000
    """Updates of the weights, counted from the start of the run."""
    lr: float = 2e-3
    """Learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes on after the warm-up: it stays, or falls to 0 at the last step."""
    warmup: int = 0
    """Steps over which the learning rate rises to --lr in equal parts."""
    optimiser: Literal["adam", "sgd"] = "adam"
    """How the weights are updated."""
    clip_norm: float = 1.0
    """Longest gradient allowed, by global norm: a longer one is shortened to this; 0 for no clipping."""
    valid_fraction: float = 0.1
    """Part of the data that is kept for validation, of a text or series its end; 0 for no validation."""
    test_fraction: float = 0.0
    """Part of the data, behind that for validation, that only `throughtime evaluate` looks at."""
    valid_every: int = 100
    """Validate every so many steps, and at the last one."""
    valid_windows: int = 50
    """At most so many windows are read in one validation."""
    patience: int = 0
    """Stop after so many validations in a row without a better one; 0 never stops early."""
    checkpoint_every: int = 200
    """Save every so many steps; also at the last step and whenever the validation loss is the best so far."""
    seed: int = 0
    """Seed of the initial weights, of dropout, of the order of sequences and of generated tasks."""
    threads: int = 0
    """CPU threads of torch; 0 leaves torch's own choice."""
    device: str = "cpu"
    """Where to compute, as torch names it: cpu, cuda, cuda:1, ..."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16 runs the matrix products in bfloat16 (torch.autocast); weights and optimiser stay in float32."""
    guard: bool = True
    """Leave out a step that is not finite or exploded, or go back to a checkpoint, and say why; else stop at a NaN."""
    watch_budget: float = 0.02
    """Share of the time for measuring how far back the gradient reaches, in RUN/watch.jsonl; 0 for not at all."""
    compile: bool = False
    """Compile the model around its recurrent layers with torch.compile; these are compiled code already."""

    def __post_init__(self) -> None:
        for name, kind in _types(type(self)).items():
            _check(name, getattr(self, name), kind, self.least.get(name, 0))
        if self.lr <= 0:
            raise ConfigError(f"lr must be greater than 0, got {self.lr:g}")
        if self.clip_norm < 0:
            raise ConfigError(f"clip_norm must be greater than 0, or 0 for no clipping, got {self.clip_norm:g}")
        if self.input_noise < 0:
            raise ConfigError(f"input_noise must be greater than 0, or 0 for none, got {self.input_noise:g}")
        if self.watch_budget < 0:
            raise ConfigError(f"watch_budget must be at least 0, a share of the time, got {self.watch_budget:g}")
        for name in ("dropout", "valid_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 0 and less than 1, got {getattr(self, name):g}")
        if self.valid_fraction + self.test_fraction >= 1:
            raise ConfigError(
                f"valid_fraction {self.valid_fraction:g} and test_fraction {self.test_fraction:g} leave nothing to "
                "train on; together they must be less than 1"
            )
        if self.patience and not self.valid_fraction:
            raise ConfigError("patience counts validations, and valid_fraction 0 has none; give one of them up")

    @property
    def title(self) -> str:
        """What the data are called, for names of directories."""
        return Path(getattr(self, self.source)).stem or "data"

    def anchored(self: Self) -> Self:
        """The same description with the place of the data absolute, so that a run can be continued from anywhere."""
        where: dict[str, Any] = {self.source: str(Path(getattr(self, self.source)).absolute())}
        return replace(self, **where)

    @property
    def may_change(self) -> frozenset[str]:
        """The options that may differ when a run is continued."""
        return self.changeable | ({self.source} if self.movable else set())

    def digest(self) -> str:
        """A fingerprint of the options that a checkpoint depends on: all but the changeable ones."""
        fixed = {k: v for k, v in asdict(self).items() if k not in self.may_change}
        return hashlib.sha256(json.dumps([self.kind, fixed], sort_keys=True).encode()).hexdigest()

    def changed(self: Self, **changes: Any) -> Self:
        """This config with some options changed, as a continued run may; others raise `ConfigError`."""
        may = self.may_change
        for name, value in changes.items():
            if name not in asdict(self):
                raise ConfigError(f"there is no option {name!r}; the options are {', '.join(asdict(self))}")
            if name not in may and value != getattr(self, name):
                raise ConfigError(
                    f"{name} cannot change when a run is continued (it was {getattr(self, name)!r}, got {value!r}); "
                    f"start a new run for that. What can change: {', '.join(sorted(may))}"
                )
        return replace(self, **changes)


def _types(kind: type[RunConfig]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _check(name: str, value: object, kind: Any, least: int) -> None:
    if kind is int:
        whole(name, value, least)
    elif kind is float:
        number(name, value)
    elif kind is bool:
        if not isinstance(value, bool):
            raise ConfigError(f"{name} must be true or false, got {value!r}")
    elif kind is str:
        if not isinstance(value, str):
            raise ConfigError(f"{name} must be a string, got {value!r}")
    elif value not in get_args(kind):
        raise ConfigError(f"{name} must be one of {', '.join(map(str, get_args(kind)))}, got {value!r}")


def whole(name: str, value: object, least: int) -> None:
    """Raises ConfigError unless `value` is a whole number of at least `least`, and of 31 bits."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{name} must be a whole number, got {value!r}")
    if not least <= value <= _LARGEST:
        bound = f"at least {least}" if value < least else f"at most {_LARGEST}"
        raise ConfigError(f"{name} must be {bound}, got {value}")


def number(name: str, value: object) -> None:
    """Raises ConfigError unless `value` is a finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ConfigError(f"{name} must be a finite number, got {value!r}")
