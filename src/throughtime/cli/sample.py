"""`throughtime sample`: text from a trained model, shown as it is written."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

from throughtime.cli.options import Sample
from throughtime.train import load, stream


def main(options: Sample, words: Sequence[str] = ()) -> int:
    """Print the prompt and `length` more symbols."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may not be able to show all that a model knows
        sys.stdout.reconfigure(errors="backslashreplace")
    model = load(options.run, options.checkpoint)
    pieces = stream(model, options.prompt, options.length, options.temperature, options.seed)
    sys.stdout.write(options.prompt)
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return 0
