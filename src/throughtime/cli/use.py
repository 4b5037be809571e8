"""`throughtime evaluate` and `throughtime forecast`: what a trained run is good for."""

from __future__ import annotations

import json
from collections.abc import Sequence

from throughtime.cli.options import Evaluate, Forecast
from throughtime.files import write_file
from throughtime.train import evaluate, forecast


def main(options: Evaluate | Forecast, words: Sequence[str] = ()) -> int:
    """Print what was asked for, or write it to a file."""
    if isinstance(options, Forecast):
        found = forecast(
            options.run, data=options.data, quantiles=options.quantiles, checkpoint=options.checkpoint
        ).csv()
        if options.out is None:
            print(found, end="")
        else:
            write_file(options.out, found.encode())
            print(options.out)
        return 0
    measured = evaluate(options.run, part=options.part, data=options.data, checkpoint=options.checkpoint)
    print(json.dumps(measured.plain()) if options.json else measured)
    return 0
