"""What docs/guard.md shows is what its code prints."""

import contextlib
import io
import re
from pathlib import Path


def test_the_example_prints_what_is_written_under_it(caplog):
    caplog.set_level("CRITICAL", "throughtime.guard")
    text = (Path(__file__).parents[2] / "docs" / "guard.md").read_text(encoding="utf-8")
    code, shown = re.search(r"```python\n(.*?)```\n+```text\n(.*?)```", text, re.DOTALL).groups()
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, {})
    assert out.getvalue() == shown
