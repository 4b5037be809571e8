"""What changes while a model is trained: weights, optimiser, state, step, random numbers; how it is saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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
from throughtime.train.distributed import ALONE, Group
from throughtime.train.model import build
from throughtime.train.refitting import check_state, place_in_data, take_optimiser
from throughtime.train.states import merged, move_state, share_of

KEEP = 2
"""Checkpoints kept besides the best."""


class Session:
    """The moving parts of a run. `position` counts the windows read; what they hold follows from it and the seed.

    Of several processes each has the weights, the optimiser and its share of the states; `together` is the model as it
    is trained, its gradients those of all processes.
    """

    def __init__(self, config: RunConfig, schema: Schema, group: Group = ALONE) -> None:
        self.config, self.group = config, group
        self.device = group.device(config.device)
        self.model = build(config, schema).to(self.device)
        kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[config.optimiser]
        self.optimiser: torch.optim.Optimizer = kind(self.model.parameters(), lr=config.lr)
        self.state: Any = None
        self.step = 0
        self.position = 0
        self.best = Best()
        self.saved_by = group.size  # so many processes, the checkpoint that it goes on from
        self.together: torch.nn.Module = self.model
        group.seed_apart(config.seed)

    def save(self, directory: Path, parts: Mapping[str, Any] | None = None, keep: Iterable[int] = ()) -> None:
        """Write a checkpoint of this step, and remove those that are no longer kept.

        parts: what else is to come back with it, by name: tensors, numbers, lists and dicts of them.
        keep:  steps of checkpoints that must stay.

        Of several processes the first writes, and if it cannot, `Group.settle` says so.
        """
        own = {
            "state": self.state,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        shares = self.group.gather(_plain(own))
        if self.group.first:
            self.group.attempt(self._write, directory, shares, parts or {}, keep)

    def _write(
        self, directory: Path, shares: list[dict[str, Any]], parts: Mapping[str, Any], keep: Iterable[int]
    ) -> None:
        states = merged([share.pop("state") for share in shares])
        others = {"others": shares[1:]} if len(shares) > 1 else {}  # random numbers of the other processes
        resume = {
            **parts, **shares[0], **others, "state": states, "optimiser": self.optimiser.state_dict(),
            "position": self.position,
        }  # fmt: skip
        weights = self.model.state_dict()
        checkpoint.save(directory, self.step, self.config.digest(), weights, _plain(resume), self.best)
        checkpoint.prune(directory, KEEP, keep)

    def restore(self, path: Path) -> dict[str, Any]:
        """Go on from a checkpoint; the learning rate is that of the present config. Raises `CheckpointError`.

        Gives all that was saved for resuming, the `parts` too. Of several processes the first reads, for all.
        """
        meta, resume, weights = self.group.from_first(lambda: self._read(path))
        self.model.load_state_dict(weights)
        with self.group.together():
            try:
                self._take(meta["step"], resume)
            except (KeyError, ValueError, TypeError, RuntimeError, AttributeError, IndexError) as error:
                raise checkpoint.bad(path, f"does not fit the run: {checkpoint.RESUME}: {error!r}") from None
        self.step, self.best = meta["step"], Best(meta["best_loss"], meta["best_step"])
        return resume

    def _read(self, path: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        digest = self.config.digest()
        meta, resume = checkpoint.read_meta(path), checkpoint.read_resume(path, digest)
        checkpoint.read_weights(path, self.model, digest)
        return meta, resume, self.model.state_dict()

    def _take(self, step: int, resume: Mapping[str, Any]) -> None:
        group = self.group
        take_optimiser(self.optimiser, resume["optimiser"])
        self.position = place_in_data(resume["position"])
        state = resume["state"]
        self.state = move_state(state if group.size == 1 else share_of(state, group.rank, group.size), self.device)
        check_state(self.model, self.state)
        drawn = [resume, *resume.get("others", [])]
        self.saved_by = len(drawn)
        if group.rank >= len(drawn):  # there are more processes than there were
            group.seed_apart(self.config.seed, step)
            return
        own = drawn[group.rank]
        torch.set_rng_state(own["rng"])
        if self.device.type == "cuda" and own["cuda_rng"] is not None:
            torch.cuda.set_rng_state(own["cuda_rng"], self.device)


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
def private_torch(config: RunConfig, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch and set its threads for this run alone; the caller's are put back.

    device: that of this process, where the config does not say it all.
    Raises `ConfigError` for a device that is not there, or when what is asked for does not fit into memory.
    """
    device = device or ALONE.device(config.device)
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
