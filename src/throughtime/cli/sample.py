"""`throughtime sample`: text from a trained model, shown as it is written."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

from throughtime.cli.options import Sample
from throughtime.errors import ConfigError
from throughtime.train import LanguageModel, load, stream


def main(options: Sample, words: Sequence[str] = ()) -> int:
    """Print the prompt and `length` more symbols."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may not be able to show all that a model knows
        sys.stdout.reconfigure(errors="backslashreplace")
    model = load(options.run, options.checkpoint)
    if not isinstance(model, LanguageModel):
        raise ConfigError(f"{options.run} is a run of the kind {model.config.kind!r}; only runs on text write text")
    pieces = stream(
        model, options.prompt, options.length, options.temperature, options.seed,
        top_k=options.top_k, top_p=options.top_p,
    )  # fmt: skip
    sys.stdout.write(options.prompt)
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return 0
