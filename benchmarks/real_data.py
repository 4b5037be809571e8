"""The trainer on real data, beside published results and naive forecasts.

    python benchmarks/real_data.py --data FOLDER [--only jsb nottingham ...] [--scale 0.1]

FOLDER has music/JSB_Chorales.npz and music/Nottingham.npz (arrays train_bits, train_len, and so on for valid and
test), tinyshakespeare/input.txt, names/LANGUAGE.txt with a name a line, timeseries/*.csv. Each
experiment is one description of a run; it is trained, the checkpoint with the best validation is measured on the test
part, and a line of JSON is printed. --scale shortens the training, for a look.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

from throughtime.train import ForecastConfig, LabelConfig, LMConfig, NotesConfig, RunConfig, evaluate, train

PUBLISHED = {
    "jsb": "nats per step: LSTM 8.45, GRU 8.43, RNN 8.91 (Bai 2018, 300 K weights)",
    "nottingham": "nats per step: LSTM 3.29, GRU 3.46, RNN 4.05 (Bai 2018, 1 M weights)",
    "shakespeare": "bits per character of a bigram 3.58, of a trigram 2.96 (on a 90/10 split)",
}


def experiments(data: Path, scratch: Path) -> dict[str, RunConfig]:
    """The descriptions of the runs."""
    music = {"hidden": 200, "batch": 16, "dropout": 0.3, "lr": 3e-3, "schedule": "cosine", "warmup": 50}
    return {
        "jsb": NotesConfig(str(data / "music/JSB_Chorales.npz"), steps=4000, valid_every=100, patience=5, **music),
        "nottingham": NotesConfig(
            str(data / "music/Nottingham.npz"), hidden=300, batch=8, window=100, dropout=0.4, lr=2e-3,
            schedule="cosine", warmup=50, steps=10000, valid_every=500, valid_windows=1000, patience=6,
        ),
        "shakespeare": LMConfig(
            str(data / "tinyshakespeare/input.txt"), hidden=256, embedding=64, window=128, batch=32, steps=4000,
            lr=3e-3, schedule="cosine", warmup=100, dropout=0.2, valid_fraction=0.05, test_fraction=0.05,
            valid_every=200,
        ),
        "names": LabelConfig(
            str(names(data / "names", scratch)), label="language", characters="name", bidirectional=True, hidden=96,
            batch=64, steps=3000, lr=3e-3, schedule="cosine", dropout=0.2, test_fraction=0.1, valid_every=200,
            patience=5,
        ),
        "temperatures": ForecastConfig(
            str(data / "timeseries/daily-min-temperatures.csv"), target="Temp", horizon=7, components=2, hidden=32,
            batch=8, window=64, steps=800, lr=5e-3, schedule="cosine", dropout=0.1, valid_fraction=0.15,
            test_fraction=0.15, valid_every=50, patience=6,
        ),
        "sunspots": ForecastConfig(
            str(data / "timeseries/monthly-sunspots.csv"), target="Sunspots", horizon=12, season=1, components=2,
            hidden=32, batch=8, window=64, steps=800, lr=5e-3, schedule="cosine", dropout=0.1, valid_fraction=0.15,
            test_fraction=0.15, valid_every=50, patience=6,
        ),
        "passengers": ForecastConfig(
            str(data / "timeseries/airline-passengers.csv"), target="Passengers", horizon=6, season=12, components=1,
            hidden=16, batch=2, window=16, steps=400, lr=5e-3, schedule="cosine", dropout=0.1, valid_fraction=0.2,
            test_fraction=0.2, valid_every=20, patience=6,
        ),
    }  # fmt: skip


def names(folder: Path, scratch: Path) -> Path:
    """The files of names as one table with a row for each."""
    table = scratch / "names.csv"
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "language"])
        for path in sorted(folder.glob("*.txt")):
            if path.stem != "SOURCE":
                writer.writerows([name, path.stem] for name in path.read_text("utf-8").split("\n") if name)
    return table


def main() -> int:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        chosen = experiments(options.data, Path(folder))
        for name in options.only or chosen:
            config = replace(
                chosen[name],
                steps=max(1, round(chosen[name].steps * options.scale)),
                threads=options.threads,
                device=options.device,
                precision=options.precision,
            )
            began = time.monotonic()
            result = train(config, Path(folder) / name)
            seconds = time.monotonic() - began
            found = evaluate(result.path, part="test")
            print(json.dumps({
                "experiment": name, **found.plain(), "published": PUBLISHED.get(name), "seconds": round(seconds),
                "steps": result.history[-1].step, "config": asdict(config),
            }), flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
