"""A disk that fills at random moments of a training run: does the run say so, and go on to the undisturbed numbers?

    python benchmarks/disk.py --fills 30                 (as root: it mounts a tmpfs of a megabyte)
    python benchmarks/disk.py --fills 30 --processes 2

The run's directory lies on a small tmpfs. After a random time another file takes all the room that is left, but for a
random number of bytes, so that the log, a part of a checkpoint, or nothing fits. The training must then end with one
line that names the full disk; every checkpoint that is there must be whole; and when there is room again the run goes
on. Each run must end with the very log and weights of one that was never disturbed.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kill import PATIENCE, Child, description, problems

from throughtime.train.checkpoint import steps_in

SIZE = 1 << 20
WORDS = "No space left on device"


def fill(place: Path, spare: int) -> Path:
    """Take all room on the disk of `place` but `spare` bytes."""
    filler = place / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        file.truncate(max(0, file.tell() - spare))
    return filler


def attempt(chance: random.Random, options: argparse.Namespace, child: Child, disk: Path) -> tuple[bool, list[str]]:
    """Fill the disk at some moment of a training and make room again; whether it ended well, and what was wrong."""
    time.sleep(chance.uniform(0.0, options.longest))
    filler = fill(disk, chance.choice((0, 4096, 16384, 32768)))
    ended = child.wait(PATIENCE)
    filler.unlink()
    if not ended:
        child.kill(child.pids)
        child.wait(PATIENCE)
        return False, [f"did not end within {PATIENCE:g} s after the disk was full"]
    if not any(child.statuses.values()):
        return True, []
    told = child.errors
    good = len(told) == len(child.pids) and all(t.startswith("WriteError: ") and WORDS in t for t in told)
    return False, [] if good and not any("\n" in t for t in told) else [f"said {told}"]


def run_all(options: argparse.Namespace, place: Path, disk: Path) -> dict[str, object]:
    """Fill, make room, go on, compare."""
    chance, began = random.Random(options.seed), time.monotonic()
    config = description(place, options.steps)
    fills, ended, saved, bad, runs = 0, [], [], [], 0
    while fills < options.fills and not bad:
        run = disk / f"run-{runs}"
        done, bad = attempt(chance, options, Child(config, run, place, options.processes), disk)
        steps = steps_in(run / "checkpoints")
        if not done:
            fills += 1
            saved.append(steps[-1] if steps else None)
            bad += problems(config, run, None)
        if done:
            subprocess.run(["mv", str(run), str(place)], check=True)  # room for the next one
            ended.append(runs)
        runs += 1 if done or not steps else 0
    last = disk / f"run-{runs}"
    for path in () if bad else (last, place / "whole"):
        child = Child(config, path, place, options.processes)
        child.wait(float("inf"))
        bad += child.errors
    if not bad:
        for path in (*(place / f"run-{number}" for number in ended), last):
            bad += problems(config, path, place / "whole")
    return {
        "fills": fills, "runs ended": len(ended) + 1, "checkpoints at the fills": saved, "wrong": bad,
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip


def main() -> int:
    """Prints a JSON object; status 1 if anything was wrong, 2 where no tmpfs can be mounted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fills", type=int, default=30)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--longest", type=float, default=0.5, help="seconds until the disk is full, at most")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place, disk = Path(folder), Path(folder) / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(disk)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
            print("this needs to mount a tmpfs: run it as root, where mounting is allowed", file=sys.stderr)
            return 2
        try:
            found = run_all(options, place, disk)
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    print(json.dumps(found))
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
