"""kill -9 at random instants of a training run: does it always resume, and end with the undisturbed run's numbers?

    python benchmarks/kill.py --kills 100
    python benchmarks/kill.py --kills 100 --processes 2

A child process trains a small model and saves every few steps; it is killed after a random time, another one resumes,
and so on. When it has come to its end, a new run begins, until there were so many kills. Each run must end with the
very log and weights of the undisturbed one, and after each kill every checkpoint that is there must be whole.

With several processes that train together, every other kill is of all of them, and the others of one at random: those
that are left must then end by themselves within a minute. (Before they have met they wait for the one that is gone;
then this script ends them, as torchrun does, and counts it.)
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from throughtime.train import NotesConfig, load, resume, train
from throughtime.train.checkpoint import RESUME, WEIGHTS, read_meta, read_resume, steps_in
from throughtime.train.meeting import joined
from throughtime.train.runlog import read_log

PATIENCE = 60.0
"""Seconds in which the processes that are left must have ended."""


def description(place: Path, steps: int) -> NotesConfig:
    """A small run with everything that must survive: dropout's random numbers, carried states, a shuffled order."""
    lengths = [5 + n % 7 for n in range(20)]
    rolls = np.random.default_rng(0).integers(0, 2, (sum(lengths), 8))
    np.savez(place / "rolls.npz", train=rolls, train_len=lengths)
    return NotesConfig(
        str(place / "rolls.npz"), hidden=6, batch=4, window=4, dropout=0.2, steps=steps, valid_every=9,
        checkpoint_every=4, threads=1,
    )  # fmt: skip


class Child:
    """One training, of one or more processes, that begins a run or goes on with it."""

    def __init__(self, config: NotesConfig, run: Path, notes: Path, processes: int = 1) -> None:
        """The fork comes before torch has started threads. What goes wrong is written to `notes`/error-N."""
        self.notes, again = notes, bool(steps_in(run / "checkpoints")) and (run / "config.json").exists()
        for note in (*notes.glob("met-?"), *notes.glob("error-?")):
            note.unlink()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        self.pids: list[int] = []
        for rank in range(processes):
            pid = os.fork()
            if not pid:
                if processes > 1:
                    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
                    os.environ.update({name: str(value) for name, value in place.items()})
                    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
                os._exit(_train(config, run, notes, rank, again))
            self.pids.append(pid)
        self.statuses: dict[int, int] = {}

    @property
    def met(self) -> bool:
        """Whether all processes have found each other."""
        return len(list(self.notes.glob("met-?"))) == len(self.pids)

    def kill(self, pids: list[int]) -> None:
        """kill -9 of those that have not ended."""
        for pid in pids:
            if not self.ended(pid):
                os.kill(pid, signal.SIGKILL)

    def ended(self, pid: int) -> bool:
        """Whether a process has ended; its status is then known."""
        if pid not in self.statuses:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self.statuses[pid] = status
        return pid in self.statuses

    def wait(self, patience: float) -> bool:
        """Whether all end within so many seconds."""
        end = time.monotonic() + patience
        while not all(self.ended(pid) for pid in self.pids):
            if time.monotonic() > end:
                return False
            time.sleep(0.002)
        return True

    @property
    def errors(self) -> list[str]:
        """What the processes said, in the order of their ranks."""
        return [note.read_text().strip() for note in sorted(self.notes.glob("error-?"))]


def _train(config: NotesConfig, run: Path, notes: Path, rank: int, again: bool) -> int:
    try:
        with joined():
            (notes / f"met-{rank}").touch()
            if again:
                resume(run)
            else:
                train(config, run)
        return 0
    except BaseException as error:  # the parent must hear of it
        (notes / f"error-{rank}").write_text(f"{type(error).__name__}: {error}\n")
        return 1


def problems(config: NotesConfig, run: Path, whole: Path | None) -> list[str]:
    """What is wrong with a run: after a kill its checkpoints, at its end its numbers."""
    found = []
    for step in steps_in(run / "checkpoints"):
        place = run / "checkpoints" / f"step-{step:06d}"
        read_meta(place)
        read_resume(place, config.digest())
        missing = [name for name in (WEIGHTS, RESUME) if not (place / name).is_file()]
        found += [f"{place.name} lacks {name}" for name in missing]
    if whole is not None:
        logs = [[(r.step, r.loss, r.grad_norm, r.valid) for r in read_log(path / "log.jsonl")] for path in (run, whole)]
        if logs[0] != logs[1]:
            found.append("the log is another one")
        pairs = zip(load(run, "last").parameters(), load(whole, "last").parameters(), strict=True)
        if not all(torch.equal(one, other) for one, other in pairs):
            found.append("the weights are others")
        found += [f"{path.name} was left" for path in run.rglob(".tmp-*")]
    return found


def attempt(options: argparse.Namespace, chance: random.Random, config: NotesConfig, run: Path, notes: Path) -> str:
    """Train until the end or a kill at a random instant; says which: ended, killed, or what went wrong."""
    child = Child(config, run, notes, options.processes)
    time.sleep(chance.uniform(0.0, options.longest))
    victims = child.pids if options.processes == 1 or chance.random() < 0.5 else [chance.choice(child.pids)]
    met = child.met
    child.kill(victims)
    if not child.wait(PATIENCE if met or len(victims) == options.processes else 1.0):
        child.kill(child.pids)
        child.wait(PATIENCE)
        if met:
            return f"the others went on for {PATIENCE:g} s after one was killed"
        return "killed before they had met"
    if any(os.WIFSIGNALED(status) for status in child.statuses.values()):
        return "killed" if len(victims) == options.processes else "one killed"
    return "ended" if not any(child.statuses.values()) else f"failed: {child.errors}"


def main() -> int:
    """Kill, resume, compare; prints a JSON object; status 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--longest", type=float, default=0.5, help="seconds to the kill, at most")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, began = random.Random(options.seed), time.monotonic()
    kills = dict.fromkeys(("killed", "one killed", "killed before they had met"), 0)
    ended, saved, bad, runs = [], [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        config = description(place, options.steps)
        while not bad and sum(kills.values()) < options.kills:
            run = place / f"run-{runs}"
            how = attempt(options, chance, config, run, place)
            steps = steps_in(run / "checkpoints")
            if how in kills:
                kills[how] += 1
                saved.append(steps[-1] if steps else None)
                bad += problems(config, run, None)
                if steps and steps[-1] == options.steps:  # killed when all was done
                    ended.append(runs)
                runs += 0 if steps and steps[-1] < options.steps else 1  # without a checkpoint it is begun again
            elif how == "ended":
                ended.append(runs)
                runs += 1
            else:
                bad.append(how)
        for name in () if bad else (f"run-{runs}", "whole"):  # the last one goes on to its end, and one undisturbed
            child = Child(config, place / name, place, options.processes)
            child.wait(float("inf"))
            bad += child.errors
        if not bad:
            ended.append(runs)
            for number in ended:
                bad += problems(config, place / f"run-{number}", place / "whole")
    print(json.dumps({
        "kills": sum(kills.values()), "of them": kills, "runs ended": len(ended), "checkpoints at the kills": saved,
        "wrong": bad, "seconds": round(time.monotonic() - began, 1),
    }))  # fmt: skip
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
