"""`throughtime diagnose`: what is wrong with a trained run, or that nothing is, and what to do."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Sequence

from throughtime.cli.options import Diagnose
from throughtime.train.diagnosing import diagnose_run


def main(options: Diagnose, words: Sequence[str] = ()) -> int:
    """Print the diagnosis of a run, and save it beside the run's other files."""
    found = diagnose_run(
        options.run, checkpoint=options.checkpoint, text=options.text, batches=options.batches, use=options.use
    )
    path = found.save(options.out or options.run / "diagnosis.safetensors")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may not be able to show block characters
        sys.stdout.reconfigure(errors="replace")
    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    print(found.text(max(width, 40)))
    print(f"\nsaved to {path}; read it again with throughtime.load_diagnosis")
    return 0
