"""`throughtime drift`: how a model drifts when it feeds on its own output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from throughtime.cli.options import Drift
from throughtime.files import write_json
from throughtime.train import drift


def main(options: Drift, words: Sequence[str] = ()) -> int:
    """Print the profile, and save it as JSON."""
    found = drift(
        options.run, length=options.length, context=options.context, sequences=options.sequences, seed=options.seed,
        part=options.part, checkpoint=options.checkpoint,
    )  # fmt: skip
    place = Path(options.run) / "drift.json" if options.out is None else options.out
    write_json(place, found.to_dict())
    print(found)
    print(place)
    return 0
