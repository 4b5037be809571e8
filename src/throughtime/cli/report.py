"""`throughtime report`: a run, or a saved diagnosis, as one page that opens offline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from throughtime.cli.options import Report
from throughtime.diagnosis import Diagnosis
from throughtime.errors import ConfigError
from throughtime.report import diagnosis_page, write
from throughtime.report.runs import run_page


def main(options: Report, words: Sequence[str] = ()) -> int:
    """Writes the page and prints where it is."""
    if options.run.is_dir():
        page = run_page(options.run, checkpoint=options.checkpoint, text=options.text, use=options.use)
        out = options.out or options.run / "report.html"
    elif options.run.is_file():
        page = diagnosis_page(Diagnosis.load(options.run), title=options.run.stem)
        out = options.out or options.run.with_suffix(".html")
    else:
        raise ConfigError(f"there is no {options.run}; give the directory of a run, or a saved diagnosis")
    print(f"{page.verdict}\n\nThe page: {Path(write(page, out)).resolve()}")
    return 0
