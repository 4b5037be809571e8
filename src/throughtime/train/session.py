"""What changes while a model is trained: weights, optimiser, state, step, random numbers; how it is saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from throughtime.errors import CheckpointError, ConfigError
from throughtime.train import checkpoint
from throughtime.train.checkpoint import Best
from throughtime.train.config import RunConfig
from throughtime.train.data.schema import Schema
from throughtime.train.model import build
from throughtime.train.states import move_state

KEEP = 2
"""Checkpoints kept besides the best."""


class Session:
    """The moving parts of a run. `position` counts the windows read; what they hold follows from it and the seed."""

    def __init__(self, config: RunConfig, schema: Schema) -> None:
        self.config = config
        self.device = torch.device(config.device)
        self.model = build(config, schema).to(self.device)
        kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[config.optimiser]
        self.optimiser: torch.optim.Optimizer = kind(self.model.parameters(), lr=config.lr)
        self.state: Any = None
        self.step = 0
        self.position = 0
        self.best = Best()

    def save(self, directory: Path) -> None:
        """Write a checkpoint of this step, and remove those that are no longer kept."""
        resume = {
            "optimiser": self.optimiser.state_dict(),
            "state": self.state,
            "position": self.position,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        weights = self.model.state_dict()
        checkpoint.save(directory, self.step, self.config.digest(), weights, _plain(resume), self.best)
        checkpoint.prune(directory, KEEP)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint; the learning rate is that of the present config. Raises `CheckpointError`."""
        digest = self.config.digest()
        meta = checkpoint.read_meta(path)
        resume = checkpoint.read_resume(path, digest)
        checkpoint.read_weights(path, self.model, digest)
        try:
            self.optimiser.load_state_dict(resume["optimiser"])
            self.state = move_state(resume["state"], self.device)
            self.position = int(resume["position"])
            torch.set_rng_state(resume["rng"])
            if self.device.type == "cuda" and resume["cuda_rng"] is not None:
                torch.cuda.set_rng_state(resume["cuda_rng"], self.device)
        except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            raise checkpoint.bad(path, f"does not fit the run: {checkpoint.RESUME}: {error!r}") from None
        self.step, self.best = meta["step"], Best(meta["best_loss"], meta["best_step"])


def _plain(value: Any) -> Any:
    """A copy with every tensor on the CPU in storage of its own, so that a view saves no more than itself."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(v) for v in value)
    return value


@contextmanager
def private_torch(config: RunConfig) -> Iterator[None]:
    """Seed torch and set its threads for this run alone; the caller's are put back.

    Raises `ConfigError` for a device that is not there, or when what is asked for does not fit into memory.
    """
    try:
        device = torch.device(config.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).splitlines()[0]
        raise ConfigError(f"device {config.device!r} cannot be used here ({why}); try --device cpu") from None
    threads = torch.get_num_threads()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            if config.threads:
                torch.set_num_threads(config.threads)
            torch.manual_seed(config.seed)
            yield
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, CheckpointError) or not _is_memory(error):
                raise
            raise ConfigError(
                "the model or its windows do not fit into memory; lower --hidden, --layers, --batch or --window"
            ) from None
        finally:
            torch.set_num_threads(threads)


def _is_memory(error: Exception) -> bool:
    """torch reports a lack of CPU memory, or a size past 2**63 bytes, as a RuntimeError known by its text."""
    signs = ("allocate memory", "not enough memory", "out of memory", "calculation overflowed")
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in signs)
