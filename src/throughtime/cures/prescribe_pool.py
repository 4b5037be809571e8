"""Runs trials side by side: in a process pool of our own, or through any concurrent.futures executor."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from throughtime.cures.prescribe_remedies import Candidate
from throughtime.cures.prescribe_trial import Job, Trial, run_trial
from throughtime.errors import ConfigError, ThroughtimeError

Wanted = Sequence[tuple[Candidate, int]]

_kept: Job | None = None  # in a process of the pool: the job, handed over once


class Runner:
    """Runs trials of one job: `runner(wanted)` gives their results in the order asked for."""

    def __init__(self, job: Job, executor: Executor) -> None:
        self.job, self.executor, self._own = job, executor, isinstance(executor, _Pool)

    def __call__(self, wanted: Wanted) -> list[Trial]:
        """One trial for each (candidate, seed).

        Raises ThroughtimeError where a process ended of itself, ConfigError where the job cannot be sent to another
        process; an exception of the user's model or loss passes through.
        """
        futures: list[Future[Trial]] = []
        try:
            for candidate, seed in wanted:
                if self._own:
                    futures.append(_submit(self.executor, candidate, seed))
                else:
                    futures.append(self.executor.submit(run_trial, self.job, candidate, seed))
            return [f.result() for f in futures]
        except BrokenProcessPool:
            raise ThroughtimeError(
                "a process in which a trial ran ended of itself: it was killed, ran out of memory, or crashed. Try a "
                "smaller model or fewer batches, or executor=ThreadPoolExecutor(1) to run the trials in this process"
            ) from None
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            if "pickle" not in str(error).lower():
                raise
            raise ConfigError(
                f"the model, the loss or the batches cannot be sent to another process ({_line(error)}); write the "
                "loss as a function of a module, not a lambda, or give executor=ThreadPoolExecutor(1)"
            ) from None
        finally:
            for f in futures:
                f.cancel()


class _Pool(ProcessPoolExecutor):
    """A process pool whose processes have the job already."""


@contextmanager
def runner(job: Job, executor: Executor | None) -> Iterator[Runner]:
    """A `Runner` on the executor; or on processes of our own, one a core, ended on leaving.

    Where the system can, they are forked, so that the job need not be pickled and a script needs no main guard (as
    torch's DataLoader does); not with a model on a GPU, which a forked process cannot use.
    """
    if executor is not None:
        if not isinstance(executor, Executor) and not callable(getattr(executor, "submit", None)):
            raise ConfigError(f"executor must have submit(), as in concurrent.futures; came {type(executor).__name__}")
        yield Runner(job, executor)
        return
    on_cpu = all(p.device.type == "cpu" for p in job.model.parameters())
    how = "fork" if on_cpu and "fork" in multiprocessing.get_all_start_methods() else "spawn"
    others = set(multiprocessing.active_children())
    with _Pool(_cores(), multiprocessing.get_context(how), _keep, (job,)) as pool:
        try:
            yield Runner(job, pool)
        except BaseException:  # Ctrl-C too: nobody waits for trials whose results are not wanted any more
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


def _submit(pool: Executor, candidate: Candidate, seed: int) -> Future[Trial]:
    with warnings.catch_warnings():
        # Python 3.12 warns of forking beside threads; a trial runs on one thread and takes no lock of the others.
        warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
        return pool.submit(_run_kept, candidate, seed)


def _keep(job: Job) -> None:
    global _kept
    _kept = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to act on


def _run_kept(candidate: Candidate, seed: int) -> Trial:
    assert _kept is not None
    return run_trial(_kept, candidate, seed)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
