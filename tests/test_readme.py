"""The README is true: its code runs, and prints what it says it prints."""

import contextlib
import io
import re
from pathlib import Path

from throughtime import cells

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_snippets_print_what_is_written_under_them():
    pairs = re.findall(r"```python\n(.*?)```\n+```text\n(.*?)```", README, re.DOTALL)
    assert len(pairs) == 5
    names: dict = {}
    for code, shown in pairs:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(code, names)
        assert out.getvalue() == shown


def test_every_cell_is_in_the_table():
    for name in cells.NAMES:
        assert f"`{name}`" in README


def test_the_tree_is_as_it_stands():
    root = Path(__file__).parents[1] / "src" / "throughtime"
    rooms = {p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("__")}
    assert rooms == set(re.findall(r"^  (\w+)/ ", README, re.MULTILINE))
    for name in re.findall(r"\w+\.py", README.split("## The house")[1]):
        assert (root / "engine" / name).is_file(), name
