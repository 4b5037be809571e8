"""kill -9 at random instants of a training run: does it always resume, and end with the undisturbed run's numbers?

    python benchmarks/kill.py --kills 100

A child process trains a small model and saves every few steps; it is killed after a random time, another one resumes,
and so on. When it has come to its end, a new run begins, until there were so many kills. Each run must end with the
very log and weights of the undisturbed one, and after each kill every checkpoint that is there must be whole.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from throughtime.train import NotesConfig, load, resume, train
from throughtime.train.checkpoint import RESUME, WEIGHTS, read_meta, read_resume, steps_in
from throughtime.train.runlog import read_log


def description(place: Path, steps: int) -> NotesConfig:
    """A small run with everything that must survive: dropout's random numbers, carried states, a shuffled order."""
    lengths = [5 + n % 7 for n in range(20)]
    rolls = np.random.default_rng(0).integers(0, 2, (sum(lengths), 8))
    np.savez(place / "rolls.npz", train=rolls, train_len=lengths)
    return NotesConfig(
        str(place / "rolls.npz"), hidden=6, batch=4, window=4, dropout=0.2, steps=steps, valid_every=9,
        checkpoint_every=4, threads=1,
    )  # fmt: skip


def child(config: NotesConfig, run: Path, log: Path) -> int:
    """Start a process that trains or goes on; returns its id. The fork comes before torch has started threads."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        if steps_in(run / "checkpoints") and (run / "config.json").exists():
            resume(run)
        else:
            train(config, run)
        status = 0
    except BaseException as error:  # the parent must hear of it
        log.write_text(f"{type(error).__name__}: {error}\n")
    finally:
        os._exit(status)


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


def main() -> int:
    """Kill, resume, compare; prints a JSON object; status 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--longest", type=float, default=0.5, help="seconds to the kill, at most")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, began = random.Random(options.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        config = description(place, options.steps)
        kills, ended, saved, bad, runs = 0, [], [], [], 0
        while kills < options.kills or not ended or ended[-1] != runs:
            run, log = place / f"run-{runs}", place / "error"
            pid = child(config, run, log)
            if kills < options.kills:
                time.sleep(chance.uniform(0.0, options.longest))
                os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            steps = steps_in(run / "checkpoints")
            if os.WIFSIGNALED(status):
                kills += 1
                saved.append(steps[-1] if steps else None)
                bad += problems(config, run, None)
                if not steps:  # killed before its first checkpoint: such a run is begun again
                    runs += 1
            elif status == 0:
                ended.append(runs)
                runs += 1 if kills < options.kills else 0
            else:
                bad.append(log.read_text().strip())
                break
        undisturbed = place / "whole"
        if not bad:
            pid = child(config, undisturbed, place / "error")
            bad += [] if os.waitpid(pid, 0)[1] == 0 else [(place / "error").read_text()]
            for number in ended:
                bad += problems(config, place / f"run-{number}", undisturbed)
    print(json.dumps({
        "kills": kills, "runs ended": len(ended), "checkpoints at the kills": saved, "wrong": bad,
        "seconds": round(time.monotonic() - began, 1),
    }))  # fmt: skip
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
