"""The example of docs/flow.md runs as it stands, and every name in its table is there."""

import re
import textwrap
from pathlib import Path

from throughtime import flow

TEXT = (Path(__file__).parents[2] / "docs" / "flow.md").read_text()


def test_the_example_runs(capsys):
    block = re.search(r"\n\n((?:    .*\n|\n)+)", TEXT).group(1)
    assert "flow.capture(model)" in block
    exec(compile(textwrap.dedent(block), "docs/flow.md", "exec"), {})
    assert "Gradient through time over 100 steps (LSTM, layer 1)" in capsys.readouterr().out


def test_the_names_of_the_table_are_there():
    results = re.findall(r"^\| `(\w+)`(?:, `(\w+)`)? \|", TEXT, re.M)
    assert len(results) > 9
    for name in {n for pair in results for n in pair if n}:
        assert hasattr(getattr(flow, name), "load") and hasattr(getattr(flow, name), "plot"), name
    rows = [line.split("|")[2] for line in TEXT.splitlines() if line.startswith("| `") or line.startswith("| totals")]
    for name in {n for cell in rows for n in re.findall(r"`(\w+)`", cell)}:
        assert callable(getattr(flow, name)), name
