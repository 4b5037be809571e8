"""A text larger than one wants in memory: how much memory does training on it take?

    python benchmarks/large_text.py --megabytes 1024 --symbols characters

Writes a text of that size, trains a few steps on it in a process of its own, and prints a line of JSON: the memory that
the process had for itself at most (RssAnon; pages of mapped files, which the system can drop at any time, are apart) at
the end of each step, and the time to the first one.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from throughtime.train import LMConfig, train

WORDS = "the of and to in a is that for it as was with be by on not he his but at are this have from or"


def write(path: Path, megabytes: int) -> None:
    """A text of lines that differ."""
    words = WORDS.split()
    with open(path, "w", encoding="ascii") as file:
        for number in range(megabytes):
            lines = []
            size = 0
            while size < 1 << 20:
                n = number * 131071 + len(lines)
                lines.append(" ".join([words[n % 26], words[n // 26 % 26], words[n // 676 % 26], str(n % 1000), "\n"]))
                size += len(lines[-1])
            file.write("".join(lines))


def memory() -> dict[str, int]:
    """MiB of the process's own pages, and of those of files."""
    status = Path("/proc/self/status").read_text()
    return {name: int(re.search(rf"{name}:\s+(\d+)", status)[1]) // 1024 for name in ("RssAnon", "RssFile")}  # type: ignore[index]


def main() -> int:
    """Write, train, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--symbols", default="characters", choices=["characters", "bytes", "words"])
    options = parser.parse_args()
    seen: list[dict[str, int]] = []
    times: list[float] = []

    def on_step(record: Any) -> None:
        seen.append(memory())
        times.append(time.monotonic())

    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        write(Path(folder) / "text", options.megabytes)
        before, began = memory(), time.monotonic()
        config = LMConfig(str(Path(folder) / "text"), symbols=options.symbols, steps=20, valid_windows=5, threads=1)
        train(config, Path(folder) / "run", on_step=on_step)
    print(json.dumps({
        "megabytes": options.megabytes, "symbols": options.symbols, "before": before,
        "own MiB at most": max(m["RssAnon"] for m in seen), "of files at most": max(m["RssFile"] for m in seen),
        "seconds to the first step": round(times[0] - began, 1),
    }))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
