"""The moving pages as HTML, with the report's style and drawing tools, and the lab's controls made from its limits."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from importlib import resources

from throughtime import cells
from throughtime.live.lab import CHOICES, LIMITS, Setting
from throughtime.live.server import Reply, page
from throughtime.live.statements import GROUPS, STATEMENTS, Statement
from throughtime.live.views import VIEWS, Choice, Slider, View
from throughtime.report.text import escape
from throughtime.report.write import asset as report_asset

_STYLES = ("page.css", "figures.css")
_BASE = ("core.js", "scale.js", "chart.js", "map.js")
_CHOICE_WORDS = {
    "matrix": ("U is drawn", {"gaussian": "Gaussian", "orthogonal": "orthogonal", "identity": "the identity"}),
    "loss": ("Loss", {"last": "at the last step", "every": "at every step"}),
    "rule": ("Gradient", {"full": "full BPTT", "truncated": "truncated, 1997"}),
}
_SLIDER_WORDS = {
    "radius": ("Spectral radius", 0.01),
    "forget": ("Forget-gate bias", 0.1),
    "input": ("Size of W x", 0.05),
    "units": ("Units H", 1),
    "steps": ("Steps T", 1),
}


@lru_cache
def asset(name: str) -> str:
    """The text of one of this package's asset files."""
    text = (resources.files("throughtime.live") / "assets" / name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")


def style() -> Reply:
    """The report's style, and what moving pages add to it."""
    return Reply("\n".join([*map(report_asset, _STYLES), asset("live.css")]).encode(), "text/css; charset=utf-8")


def base() -> Reply:
    """The report's drawing tools, for every moving page."""
    return _script([*map(report_asset, _BASE), asset("theme.js"), asset("sheet.js")])


def script(*names: str) -> Reply:
    """The scripts of one page."""
    return _script(map(asset, names))


def _script(parts: Iterable[str]) -> Reply:
    return Reply("\n".join(parts).encode(), "text/javascript; charset=utf-8")


def shell(title: str, lead: str, main: str, script: str, links: dict[str, str]) -> Reply:
    """A whole page. `main` is HTML, `title` and `lead` are text; links: address by name, "" for this page."""
    nav = "".join(
        f'<a href="{address}">{escape(name)}</a>' if address else f'<a aria-current="page">{escape(name)}</a>'
        for name, address in links.items()
    )
    slots = {"title": escape(title), "lead": escape(lead), "nav": nav, "main": main, "script": script}
    return page(re.sub(r"\{\{(\w+)\}\}", lambda m: slots[m[1]], asset("shell.html")))


def runs(links: dict[str, str]) -> Reply:
    """The live view: training runs as they go."""
    lead = "Losses, gradient norms and how far back the gradient reaches, while it is being learnt."
    return shell("Runs", lead, asset("runs.html"), "live.js", links)


def lab(links: dict[str, str]) -> Reply:
    """The lab: the textbook that one can touch."""
    slots = {
        "cell_a": _cells("lstm", none=False),
        "cell_b": _cells("rnn", none=True),
        "choices": "".join(_choice(name) for name in CHOICES),
        "sliders": "".join(_slider(name) for name in _SLIDER_WORDS),
        "seed": str(Setting.seed),
        "statements": "".join(_group(title) for title in GROUPS),
        "views": "".join(map(_view, VIEWS.values())),
    }
    main = re.sub(r"\{\{(\w+)\}\}", lambda m: slots[m[1]], asset("lab.html"))
    lead = "Move a slider, and see the gradient flow back through time, the eigenvalues move and the gates open."
    return shell("The lab", lead, main, "lab.js", links)


def _cells(chosen: str, none: bool) -> str:
    first = '<option value="">none</option>' if none else ""
    return first + "".join(
        f'<option value="{n}"{" selected" if n == chosen else ""}>{escape(cells.by_name(n).name)}</option>'
        for n in cells.NAMES
    )


def _choice(name: str) -> str:
    label, words = _CHOICE_WORDS[name]
    start = getattr(Setting, name)
    options = "".join(
        f'<option value="{v}"{" selected" if v == start else ""}>{escape(words[v])}</option>' for v in CHOICES[name]
    )
    return f'<label>{label} <select name="{name}" autocomplete="off">{options}</select></label>'


def _slider(name: str) -> str:
    (low, high), (label, step), start = LIMITS[name], _SLIDER_WORDS[name], getattr(Setting, name)
    return (
        f'<label>{label} <output for="{name}"></output><input type="range" name="{name}" min="{low}" max="{high}" '
        f'step="{step}" value="{start}" autocomplete="off"></label>'
    )


def _group(title: str) -> str:
    listed = "".join(_statement(s) for s in STATEMENTS if s.group == title)
    return f'<h3>{escape(title)}</h3><ul class="statements">{listed}</ul>'


def _statement(s: Statement) -> str:
    said = f"<p>{escape(s.says)}</p><p><code>{escape(s.formula)}</code><br><cite>{escape(s.source)}</cite></p>"
    setting = escape(json.dumps(s.shown))
    if s.where == "network":
        return f'<li>{said}<button type="button" aria-pressed="false" data-set="{setting}">Show it</button></li>'
    sets = f' data-view-set="{s.where}" data-values="{setting}"' if s.where in VIEWS else ""
    return f'<li>{said}<a class="press" href="#{s.where}-part"{sets}>See it below</a></li>'


def _view(v: View) -> str:
    """A section for one of the small views: heading, formula, controls, what is told, how to read it."""
    return (
        f'<section id="{v.name}-part" data-view="{v.name}" aria-labelledby="{v.name}-title">'
        f'<h2 id="{v.name}-title">{escape(v.title)}</h2>'
        f'<p class="formula">{escape(v.formula)}</p><p class="formula"><cite>{escape(v.source)}</cite></p>'
        f'<form class="controls" autocomplete="off">{"".join(map(_control, v.controls))}</form>'
        f'<p class="told" role="status"></p><div class="stage"></div>'
        f'<p class="caption">{escape(v.reads)} <button type="button" class="save" '
        f'aria-label="Save the data of {escape(v.title)} as CSV">Save data as CSV</button></p></section>'
    )


def _control(c: Slider | Choice) -> str:
    if isinstance(c, Slider):
        return (
            f'<label>{escape(c.label)} <output for="{c.name}"></output><input type="range" name="{c.name}" '
            f'min="{c.low:g}" max="{c.high:g}" step="{c.step:g}" value="{c.start:g}" autocomplete="off"></label>'
        )
    options = "".join(
        f'<option value="{w}"{" selected" if w == c.start else ""}>{escape(words)}</option>'
        for w, words in c.words.items()
    )
    return f'<label>{escape(c.label)} <select name="{c.name}" autocomplete="off">{options}</select></label>'
