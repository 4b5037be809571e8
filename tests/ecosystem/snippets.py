"""The code in docs/ecosystem.md, by the heading it stands under."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "ecosystem.md").read_text(encoding="utf-8")


def under(heading: str) -> str:
    """The first block of Python under a heading of the page."""
    text = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1]
