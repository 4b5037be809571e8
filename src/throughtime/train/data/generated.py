"""A generated task as a source of batches: each position draws its own, the same whenever it is asked for."""

from __future__ import annotations

import hashlib

import torch

from throughtime.errors import ConfigError
from throughtime.train.data.batch import Batch
from throughtime.train.data.prepared import Prepared
from throughtime.train.data.schema import TaskSchema
from throughtime.train.kinds import TaskConfig
from throughtime.train.tasks import Task

_PARTS = {"train": 0, "valid": 1, "test": 2}
HELD_OUT = {"valid": 2000, "test": 10000}
"""Sequences, about, that a validation and a test draw; the same ones each time."""


class Generated:
    """Batches of a task, drawn from a generator of their own for each position: nothing needs to be kept to go on."""

    def __init__(self, task: Task, config: TaskConfig, part: str) -> None:
        self.task, self.config, self.part = task, config, part
        steps = int(getattr(task, "steps", 0))
        if config.window and not steps:
            raise ConfigError(f"the sequences of the task {task.name} differ in length; leave window at 0")
        self.windows = -(-steps // config.window) if config.window else 1
        self._drawn: tuple[int, Batch] | None = None

    def __len__(self) -> int:
        return self.windows * -(-HELD_OUT.get(self.part, 1) // self.config.batch)

    def batch(self, position: int) -> Batch:
        """The window at a position."""
        number, window = divmod(position, self.windows)
        if self._drawn is None or self._drawn[0] != number:
            self._drawn = number, self._draw(number)
        whole, T = self._drawn[1], self.config.window
        if not T:
            return whole
        assert whole.scored is not None
        span = slice(window * T, (window + 1) * T)
        return Batch(whole.inputs[span], whole.targets[span], whole.scored[span], carried=window > 0)

    def _draw(self, number: int) -> Batch:
        words = f"{self.config.seed} {_PARTS[self.part]} {number}".encode()
        seed = int.from_bytes(hashlib.sha256(words).digest()[:8], "little") >> 1
        sample = self.task.sample(self.config.batch, torch.Generator().manual_seed(seed))
        if sample.lengths is None:
            return Batch(sample.inputs, sample.targets, sample.scored)
        lengths, order = sample.lengths.sort(descending=True, stable=True)
        allowed = None if sample.allowed is None else sample.allowed[:, order]
        return Batch(
            sample.inputs[:, order], sample.targets[:, order], sample.scored[:, order], lengths, allowed=allowed
        )


def prepare(config: TaskConfig, schema: TaskSchema | None) -> Prepared:
    """The data of a run; raises `ConfigError` for a task that does not exist."""
    schema = schema or TaskSchema(config.task, config.lag)
    task = schema.rule
    train, valid, test = (Generated(task, config, part) for part in _PARTS)
    references = {
        part: {"loss without memory": task.baseline, "least possible loss": task.floor} for part in ("valid", "test")
    }
    fingerprint = hashlib.sha256(f"{config.task} {config.lag}".encode()).hexdigest()
    return Prepared(schema, train, valid if config.valid_fraction else None, test, fingerprint, references)
