"""A page as one HTML file: rendered in memory first, then put in place in one move."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import secrets
from importlib import resources
from pathlib import Path

from throughtime.errors import ReportError
from throughtime.report import figures, html
from throughtime.report.payload import packed_maps, payload
from throughtime.report.text import escape, script_json
from throughtime.report.view import Page

STYLES = ("page.css", "figures.css", "print.css")
SCRIPTS = (
    "core.js",
    "scale.js",
    "chart.js",
    "horizons.js",
    "lags.js",
    "map.js",
    "loss.js",
    "gates.js",
    "reading.js",
    "shares.js",
    "eigenvalues.js",
    "watched.js",
    "norms.js",
    "boot.js",
)


def asset(name: str) -> str:
    """The text of one of the package's own asset files."""
    text = (resources.files("throughtime.report") / "assets" / name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")


def _fill(template: str, slots: dict[str, str]) -> str:
    """Put each slot's text in its place, in one pass: a slot's name inside a slot's text stays text."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: slots[match[1]], template)


def _digest(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii") + "'"


def render(page: Page) -> str:
    """The page as HTML that needs nothing but itself.

    Its content policy lets only its own script and style run and nothing load: text from a model stays text.
    Raises ShapeError or ConfigError for maps that are not norms over [T, T].
    """
    style = "\n".join(asset(name) for name in STYLES)
    script = "\n".join(asset(name) for name in SCRIPTS)
    packed = packed_maps(page)
    terms = {"percent": figures.percent(page.fraction), "loss": html.loss_term(page)}
    return _fill(
        asset("page.html"),
        {
            "policy": f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; "
            "base-uri 'none'; form-action 'none'",
            "style": style,
            "script": script,
            "title": escape(page.title),
            "verdict": escape(page.verdict),
            "dateline": escape(page.dateline),
            "numbers": html.headline(page),
            "figures": figures.frames(page, packed),
            "samples": html.samples(page),
            "findings": html.findings(page),
            "tables": html.tables(page),
            "method": html.method(page),
            "terms": _fill(asset("terms.html"), terms),
            "storage": figures.storage(packed),
            "data": script_json(payload(page, packed)),
        },
    )


def write(page: Page, path: str | os.PathLike[str]) -> Path:
    """Write the page to `path` and return it; a reader sees the old file or the new one, never half of one.

    Raises ReportError if the folder is missing, or the file cannot be written there.
    """
    target = Path(path)
    content = render(page).encode("utf-8")
    if not target.parent.is_dir():
        raise ReportError(f"cannot write {target}: there is no folder {target.parent}; create it")
    if target.is_dir():
        raise ReportError(f"cannot write {target}: it is a folder; name a file in it")
    draft = target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")
    try:
        try:
            with open(draft, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, target)
        except BaseException:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise
    except OSError as error:
        why = error.strerror or error
        raise ReportError(f"cannot write {target}: {why}; name a folder that can be written to") from error
    return target
