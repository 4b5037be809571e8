"""The lab's page and its addresses: every control has limits, every statement a setting that can be measured."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest

from throughtime import cells
from throughtime.live import pages
from throughtime.live.app import serve
from throughtime.live.lab import Setting, measure
from throughtime.live.server import Server
from throughtime.live.statements import GROUPS, STATEMENTS
from throughtime.live.views import VIEWS


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve() as started:
        yield started


def get(server: Server, path: str) -> tuple[int, str, str]:
    try:
        with urllib.request.urlopen(server.address.rstrip("/") + path, timeout=20) as reply:
            return reply.status, reply.headers["Content-Type"], reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.names: list[str] = []
        self.buttons: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        a = dict(attrs)
        self.ids += [a["id"] or ""] if "id" in a else []
        self.names += [a["name"] or ""] if tag in ("input", "select") else []
        self.buttons += [a["data-set"] or ""] if "data-set" in a else []
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href")]


def test_the_page_has_all_that_its_script_asks_for(server: Server) -> None:
    page = _Page(get(server, "/lab")[2])
    script = get(server, "/lab.js")[2]
    wanted = set(re.findall(r'getElementById\("([\w-]+)"\)', script))
    assert wanted and wanted <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert {"cell-a", "cell-b", "units", "steps", "matrix", "radius", "forget", "loss", "rule", "seed"} <= set(
        page.names
    )
    assert "{{" not in get(server, "/lab")[2]


def test_every_address_on_the_page_is_served_and_our_own(server: Server) -> None:
    for address in _Page(get(server, "/lab")[2]).addresses:
        if address.startswith(("#", "data:,")):
            continue
        assert address.startswith("/")
        assert get(server, address)[0] == 200


def test_every_setting_that_a_statement_shows_is_measured(server: Server) -> None:
    buttons = [json.loads(b) for b in _Page(get(server, "/lab")[2]).buttons]
    assert buttons == [s.shown for s in STATEMENTS if s.where == "network"]
    for shown in buttons:
        for cell in filter(None, (shown["cell-a"], shown["cell-b"])):
            words = {k: str(v) for k, v in shown.items() if not k.startswith("cell-")}
            assert measure(Setting.read({"cell": cell, **words}))["steps"] == shown["steps"]


def test_every_cell_can_be_chosen(server: Server) -> None:
    text = get(server, "/lab")[2].split('data-view="')[0]  # the small views have a few cells each
    for name in cells.NAMES:
        assert text.count(f'<option value="{name}"') == 2


def test_what_the_statements_say_is_so() -> None:
    """Each that tells two networks apart, or names a number, by what is measured at its setting."""

    def horizons(fragment: str) -> list[tuple[int, bool]]:
        [shown] = [s.shown for s in STATEMENTS if fragment in s.says]
        settings = {k: str(v) for k, v in shown.items() if not k.startswith("cell-")}
        told = [measure(Setting.read({"cell": c, **settings})) for c in (shown["cell-a"], shown["cell-b"]) if c]
        return [(m["flow"]["z"]["horizon"], m["flow"]["z"]["at_least"]) for m in told]

    [(vanished, reached)] = horizons("vanishes exponentially")
    assert vanished < 40 and not reached
    exploding, held = horizons("may explode, but need not")
    assert exploding[1] and not held[1]
    [(contracts, reached)] = horizons("One number misleads")
    assert contracts < 20 and not reached
    linear, tanh = horizons("linear network with orthogonal U")
    assert linear[1] and not tanh[1]
    logistic, tanh = horizons("logistic function")
    assert logistic[0] < tanh[0]
    additive, simple = horizons("only added to")
    assert additive[1] and not simple[1]
    carousel, simple = horizons("the carousel carries")
    assert carousel[1] and not simple[1]
    [(opened, reached)] = horizons("closed by its bias it forgets, opened")
    assert reached or opened > 60
    closed, _ = horizons("closed by its bias: the same cell")
    assert closed[0] < 10


def test_a_statement_stands_under_a_heading_and_can_be_seen(server: Server) -> None:
    page = get(server, "/lab")[2]
    for s in STATEMENTS:
        assert s.group in GROUPS and s.says and s.formula and s.source
        assert s.where == "network" or f'id="{s.where}-part"' in page
        if s.where in VIEWS:
            VIEWS[s.where].read({k: str(v) for k, v in s.shown.items()})
    assert set(VIEWS) <= {s.where for s in STATEMENTS}  # no view without a statement


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_answers_by_its_name(server: Server, name: str) -> None:
    status, kind, body = get(server, f"/lab/view/{name}")
    found = json.loads(body)
    assert (status, kind) == (200, "application/json") and found["told"] and found["curves"]
    assert get(server, f"/lab/view/{name}?nope=1")[0] == 400
    for c in VIEWS[name].controls:
        assert f'name="{c.name}"' in get(server, "/lab")[2]


def test_errors_come_as_one_line(server: Server) -> None:
    for path, words in {
        "/lab/network?cell=nonsense": "nonsense",
        "/lab/network?units=1e9": "units must be a number",
        "/lab/network?radius=nan": "radius must lie in",
        "/lab/memory?gates=1,0&inputs=1": "three gates",
        "/lab/memory": "numbers",
        "/lab/cliff?lr=-1": "lr must lie in",
        "/lab/view/nothing": "there is no view",
        "/lab/view/..%2f..%2fetc": "there is no view",
        "/lab/view/update?steps=nan": "steps must lie in",
        "/lab/view/update?cell=x": "cell must be one of",
    }.items():
        status, kind, body = get(server, path)
        assert (status, kind) == (400, "application/json")
        assert words in json.loads(body)["error"] and "\n" not in body
    assert get(server, "/nothing")[0] == 404


def test_the_shell_shows_text_as_text() -> None:
    page = pages.shell("<b>&", "{{main}} </p>", "<p>ours</p>", "x.js", {'"><script>': ""})
    text = page.body.decode()
    assert "&lt;b&gt;&amp;" in text and "{{main}} &lt;/p&gt;" in text and "<p>ours</p>" in text
    assert text.count("<script") == 3
