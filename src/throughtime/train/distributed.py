"""The processes that train one model together: what each reads, what they add up, and how they stop and fail as one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NoReturn, TypeVar

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from throughtime.errors import ConfigError, DataError, ProcessError, ThroughtimeError
from throughtime.train.data.batch import Source
from throughtime.train.data.share import Share
from throughtime.train.launched import leave_to_first

T = TypeVar("T")
_FAILED = 1000


class Group:
    """The processes of one training, of which this is number `rank` of `size`; alone, everything here is for nothing.

    Every process calls the same methods in the same order. Messages go over gloo, gradients over gloo or, on a GPU,
    over NCCL.
    """

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0) -> None:
        self.rank, self.size, self.local = rank, size, local
        self._failure: Exception | None = None

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    # --- a share of the work ------------------------------------------------------------------------------------------

    def device(self, name: str) -> torch.device:
        """Where this process computes: of `cuda` its own GPU. Raises `ConfigError` where that is not there."""
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            why = str(error).splitlines()[0]
            raise ConfigError(f"device {name!r} cannot be used here ({why}); try --device cpu") from None
        if self.size == 1 or device.type != "cuda":
            return device
        if device.index is not None:
            raise ConfigError(
                f"device {name!r} is one GPU, and {self.size} processes need one each; give --device cuda, and each "
                "takes its own"
            )
        if self.local >= torch.cuda.device_count():
            raise ConfigError(
                f"process {self.rank} is number {self.local} of its machine, which has {torch.cuda.device_count()} "
                "GPUs; start no more processes than GPUs (--nproc-per-node)"
            )
        torch.cuda.set_device(self.local)  # where kernels are launched
        return torch.device("cuda", self.local)

    def share(self, source: Source) -> Source:
        """What this process reads of a source."""
        return source if self.size == 1 else Share(source, self.rank, self.size)

    def check_data(self, sha256: str) -> None:
        """Raises `DataError` where the processes, perhaps on several machines, have read different data."""
        found = self.gather(sha256)
        other = next((rank for rank, one in enumerate(found) if one != found[0]), None)
        if other is not None:
            raise DataError(f"process {other} has other data than process 0; give every machine the same files")

    def check_batch(self, batch: int) -> None:
        """Raises `ConfigError` where a process would have nothing to do."""
        if batch < self.size:
            raise ConfigError(
                f"a batch of {batch} cannot be shared by {self.size} processes: each needs a sequence at least; raise "
                f"--batch to {self.size} or more, or start {batch} of them"
            )

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model such that its gradients are the mean over the processes (DistributedDataParallel)."""
        if self.size == 1:
            return model
        return DistributedDataParallel(model)

    def apart(self, model: nn.Module, wanted: bool) -> AbstractContextManager[Any]:
        """Around a forward pass whose gradients stay here, if `wanted`, and are added to those of a later one."""
        return model.no_sync() if wanted and isinstance(model, DistributedDataParallel) else nullcontext()

    def seed_apart(self, seed: int, step: int = 0) -> None:
        """Random numbers of its own for every process but the first, which goes on with those it has."""
        if not self.first:
            words = f"{seed} process {self.rank} step {step}".encode()
            torch.manual_seed(int.from_bytes(hashlib.sha256(words).digest()[:8], "little") >> 1)

    # --- talking ------------------------------------------------------------------------------------------------------

    def sum(self, value: float) -> float:
        """The sum of what the processes bring, the same on each."""
        return self._reduce(value, distributed.ReduceOp.SUM) if self.size > 1 else value

    def most(self, value: int) -> int:
        """The largest of what the processes bring."""
        return int(self._reduce(value, distributed.ReduceOp.MAX)) if self.size > 1 else value

    def gather(self, value: T) -> list[T]:
        """What all processes bring, in their order, on each."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` gives on the first process, sent to all; an error of it is raised on all."""
        made: list[Any] = [None]
        with self.together():
            if self.first:
                made = [make()]
        if self.size > 1:
            distributed.broadcast_object_list(made, src=0)
        return made[0]

    # --- failing as one -----------------------------------------------------------------------------------------------

    @contextmanager
    def together(self) -> Iterator[None]:
        """What fails in this block on one process fails on all of them, with the same error, when all have left it.

        Within it, nothing is said to the others.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            if self.size == 1:
                raise
            failure = error
        if self.size > 1 and self.most(failure is not None):
            self._fail(failure)

    def attempt(self, action: Callable[..., object], *given: Any) -> None:
        """Do what may fail on this process alone, such as writing; the failure is kept until `settle`.

        Until then nothing more is attempted. Of one process alone it comes at once.
        """
        if self.size == 1:
            action(*given)
        elif self._failure is None:
            try:
                action(*given)
            except Exception as error:
                self._failure = error

    def settle(self, value: int) -> int:
        """The largest of the values, each below 1000, if every attempt since the last time went well.

        Otherwise the failure is raised on all processes.
        """
        failure, self._failure = self._failure, None
        agreed = self.most(value if failure is None else _FAILED)
        if agreed >= _FAILED:
            self._fail(failure)
        return agreed

    def _fail(self, failure: Exception | None) -> NoReturn:
        found = self.gather(None if failure is None else (type(failure), str(failure)))
        rank, (kind, message) = next((rank, one) for rank, one in enumerate(found) if one is not None)
        if failure is not None and not isinstance(failure, ThroughtimeError):
            raise failure  # with its own traceback
        if not issubclass(kind, ThroughtimeError):
            kind, message = ProcessError, f"{kind.__name__}: {' '.join(message.split())[:300]}"
        raise leave_to_first(kind(f"process {rank}: {message}" if rank else message)) from None

    def _reduce(self, value: float, how: Any) -> float:
        number = torch.tensor(value, dtype=torch.float64)
        distributed.all_reduce(number, how)
        return float(number)


ALONE = Group()
"""One process."""
