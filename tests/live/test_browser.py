"""The lab and the live view in a real browser: nothing fails, nothing is fetched from elsewhere, axe finds no fault."""

from __future__ import annotations

import base64
import csv
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from throughtime.live.app import serve
from throughtime.live.lab import Setting, measure
from throughtime.live.server import Server
from throughtime.live.statements import STATEMENTS
from throughtime.live.views import VIEWS, Slider
from throughtime.train import LMConfig, train, updates

playwright = pytest.importorskip("playwright.sync_api", reason="the extra `browser` is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the extra `browser` is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]
SIZES = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]


class Tab:
    """A page, with what it complained of and what it asked for."""

    def __init__(self, page: Any, server: Server) -> None:
        self.page, self.server = page, server
        self.complaints: list[str] = []
        page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: self.complaints.append(str(e)))
        page.on(
            "request", lambda r: r.url.startswith((server.address, "data:", "blob:")) or self.complaints.append(r.url)
        )

    def check(self) -> None:
        assert self.complaints == []
        assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        found = axe.Axe().run(self.page).response["violations"]
        assert [
            (v["id"], v["impact"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")
        ] == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as p:
        started = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture(params=SIZES, ids=lambda s: f"{s[1]}-{s[0]}")
def tab(request: pytest.FixtureRequest, browser: Any, tmp_path: Path) -> Iterator[Tab]:
    with serve(runs=tmp_path) as server:
        width, scheme = request.param
        # A context of its own: axe looks into the page with the page's content policy set aside.
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
        yield Tab(context.new_page(), server)
        context.close()


def saved_rows(page: Any, button: Any, name: str) -> list[list[str]]:
    """The rows of what a button saves, under that name."""
    with page.expect_download() as saved:
        button.click()
    assert saved.value.suggested_filename == name
    with Path(saved.value.path()).open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def answered(page: Any, more: int = 1) -> None:
    before = int(page.evaluate("document.documentElement.dataset.answered ?? 0"))
    page.wait_for_function(f"Number(document.documentElement.dataset.answered ?? 0) >= {before + more}", timeout=20_000)


def test_the_lab(tab: Tab) -> None:
    page = tab.page
    page.goto(tab.server.address + "lab")
    page.wait_for_function("document.documentElement.dataset.answered", timeout=20_000)
    assert "steps at 1" in page.inner_text("#told-a") and "steps at 1" in page.inner_text("#told-b")
    reach = page.inner_text("#told-a")
    page.locator("#controls input[name=forget]").evaluate(
        "e => { e.value = 6; e.dispatchEvent(new Event('input', {bubbles: true})); }"
    )
    answered(page, 0)
    page.wait_for_function(f"document.getElementById('told-a').innerText !== {json.dumps(reach)}", timeout=20_000)
    page.select_option("#controls select[name=cell-b]", "")
    page.wait_for_function("document.getElementById('cell-box-b').hidden", timeout=20_000)
    tab.check()


def test_each_slider_and_choice_of_the_network_is_answered(tab: Tab) -> None:
    page = tab.page
    page.goto(tab.server.address + "lab")
    page.wait_for_function("document.documentElement.dataset.answered", timeout=20_000)
    page.select_option("#controls select[name=cell-b]", "")  # one cell: one question a change
    answered(page, 0)
    told = page.locator("#cell-box-a")
    for name in ("radius", "forget", "input", "units", "steps"):
        slider = page.locator(f"#controls input[name={name}]")
        before = slider.input_value()
        slider.focus()
        page.keyboard.press("ArrowLeft")  # by keys, as one who has no pointer does
        page.keyboard.press("PageDown")
        assert slider.input_value() != before
        assert page.locator(f"#controls output[for={name}]").inner_text().replace("\u2212", "-") != before
    for name, values in (("matrix", ("orthogonal", "identity")), ("loss", ("last",)), ("rule", ("truncated",))):
        for value in values:
            page.select_option(f"#controls select[name={name}]", value)
            page.wait_for_timeout(30)
    page.wait_for_function("document.documentElement.dataset.answered > 3", timeout=20_000)
    assert "nan" not in told.inner_text().lower() and not page.locator("#told-a.trouble").count()
    tab.check()


def test_every_view_is_drawn_moved_and_saved(tab: Tab) -> None:
    page = tab.page
    page.goto(tab.server.address + "lab")
    for name, view in VIEWS.items():
        part = page.locator(f"#{name}-part")
        page.wait_for_function(
            "n => Number(document.getElementById(n).dataset.answered) > 0", arg=f"{name}-part", timeout=30_000
        )
        assert part.locator("svg .axis").count() == 1 and part.locator(".told .line").count() >= 1
        curves = part.locator("svg path.curve, svg path.mark, svg path.short")
        assert curves.count() >= 1
        plot = part.locator(".plot[tabindex]")
        plot.focus()
        where = part.locator(".readout .where").inner_text()
        page.keyboard.press("End")
        assert part.locator(".readout .where").inner_text() != where
        moved = [c for c in view.controls if isinstance(c, Slider)][-1]
        before = part.locator("svg").last.inner_html()
        slider = part.locator(f"input[name={moved.name}]")
        slider.focus()
        page.keyboard.press("Home" if float(slider.input_value()) > moved.low else "End")
        page.wait_for_function(
            "n => Number(document.getElementById(n).dataset.answered) > 1", arg=f"{name}-part", timeout=30_000
        )
        assert part.locator("svg").last.inner_html() != before
        with page.expect_download() as saved:
            part.locator("button.save").click()
        head = Path(saved.value.path()).read_text("utf-8").splitlines()[0]
        assert saved.value.suggested_filename == f"{name}.csv" and len(head.split(",")) >= 2
    tab.check()


def test_every_statement_can_be_shown(tab: Tab) -> None:
    page = tab.page
    page.goto(tab.server.address + "lab")
    page.wait_for_function("document.documentElement.dataset.answered", timeout=20_000)
    buttons = page.locator("[data-set]")
    assert buttons.count() == sum(s.where == "network" for s in STATEMENTS)
    for i in range(buttons.count()):
        buttons.nth(i).click()
        page.wait_for_function(
            "n => document.querySelectorAll('[data-set]')[n].getAttribute('aria-pressed') === 'true'", arg=i
        )
        page.wait_for_timeout(30)
        assert page.locator("#heats-a figure").count() >= 2
    links = page.locator("[data-view-set]")
    assert links.count() == sum(s.where in VIEWS for s in STATEMENTS)
    for i in range(links.count()):
        link = links.nth(i)
        part = page.locator(f"#{link.get_attribute('data-view-set')}-part")
        link.click()
        for name, value in json.loads(link.get_attribute("data-values")).items():
            shown = part.locator(f"[name={name}]").input_value()
            assert shown == value if isinstance(value, str) else float(shown) == pytest.approx(value)
        assert part.locator("h2").is_visible()
    tab.check()


def test_the_memory_cell_and_the_cliff(tab: Tab) -> None:
    page = tab.page
    page.goto(tab.server.address + "lab")
    page.wait_for_selector("#memory svg")
    for name in ("store", "read-only", "refresh"):
        page.get_by_role("button", name=name, exact=True).click()
        page.wait_for_function(f"document.getElementById('regime').innerText.startsWith('{name}')", timeout=20_000)
    page.wait_for_selector("#cliff image")
    told = page.inner_text("#cliff-told")
    page.locator("#cliff").click(position={"x": 200, "y": 150})
    page.wait_for_function(f"document.getElementById('cliff-told').innerText !== {json.dumps(told)}", timeout=20_000)
    tab.check()


def test_every_figure_of_the_lab_can_be_saved(tab: Tab) -> None:
    page = tab.page
    page.goto(tab.server.address + "lab")
    page.wait_for_function("document.documentElement.dataset.answered", timeout=20_000)
    page.wait_for_selector("#memory svg")
    page.wait_for_selector("#cliff image")
    lags = saved_rows(page, page.locator("#network > .caption .save"), "lags.csv")
    assert lags[0][0] == "lag" and len(lags) == 1 + Setting.steps
    assert [float(v) for v in lags[1][:3]] == [0, 1, 1]
    assert lags[0][1].endswith(", gradient of z") and lags[0][-1].endswith(", bound")  # an LSTM and a simple network
    heats = page.locator("#heats-a figure")
    names = ["map-a.csv", "eigenvalues-a.csv", *(f"gate-{g}-a.csv" for g in "ifo"), "state-h-a.csv", "state-c-a.csv"]
    assert heats.count() == len(names) == page.locator("#heats-a .save").count()
    tables = {n: saved_rows(page, page.locator("#heats-a .save").nth(i), n) for i, n in enumerate(names)}
    T, H = Setting.steps, Setting.units
    assert len(tables["map-a.csv"]) == 1 + T * (T + 1) // 2
    assert max(float(row[3]) for row in tables["map-a.csv"][1:]) == 1
    assert sum(row[0] == "U" for row in tables["eigenvalues-a.csv"]) == H
    for name, table in tables.items():
        if name.startswith(("gate", "state")):
            assert [len(table), len(table[0])] == [1 + T, 1 + H]
    known = measure(Setting())  # what the sliders stand at
    drawn = known["states"]["c"]
    first = drawn["low"] + base64.b64decode(drawn["data"])[0] / 255 * (drawn["high"] - drawn["low"])
    assert float(tables["state-c-a.csv"][1][1]) == pytest.approx(first, abs=1e-4)
    page.select_option("#controls select[name=loss]", "last")  # the map is one row then
    page.wait_for_function("!document.querySelector('#heats-a figcaption').innerText.includes('row t')", timeout=20_000)
    assert len(saved_rows(page, page.locator("#heats-a .save").first, "map-a.csv")) == 1 + T
    page.goto(tab.server.address + "lab")  # Chromium lets one visit save ten files
    page.wait_for_selector("#memory svg")
    page.wait_for_selector("#cliff image")
    memory = saved_rows(page, page.locator("#memory-part .save"), "memory.csv")
    assert memory[1][-1] == "refresh" and len(memory) == 9
    cliff = saved_rows(page, page.locator("#cliff-part .save"), "cliff.csv")
    assert {row[0] for row in cliff[1:]} == {"plain", "clipped", "surface"}
    tab.check()


def test_runs_as_they_go(tab: Tab, tmp_path: Path) -> None:
    page = tab.page
    page.goto(tab.server.address)
    page.wait_for_function("!document.getElementById('empty').hidden", timeout=20_000)
    hostile = tmp_path / '<img src=x onerror=alert(1)>"&'
    hostile.mkdir()
    (hostile / "config.json").write_text(json.dumps({"config": {"steps": 50}}))
    log = (hostile / "log.jsonl").open("w", buffering=1)
    for step in range(1, 51):
        log.write(json.dumps({"step": step, "loss": 3 / step, "grad_norm": float("nan") if step == 9 else 1.0}) + "\n")
        time.sleep(0.01)
    log.close()
    page.wait_for_function("document.querySelector('#runs td')?.innerText === 'finished'", timeout=20_000)
    assert page.inner_text("#runs th").strip() == hostile.name
    assert "the gradient norm is NaN" in page.inner_text("#alarms")
    page.wait_for_selector("#loss svg path.curve")
    losses = saved_rows(page, page.locator("#loss ~ .caption .save"), "loss.csv")
    assert losses[0] == ["run", "step", "loss", "validation loss"] and len(losses) == 51
    assert losses[3] == [hostile.name, "3", "1", ""]
    norms = saved_rows(page, page.locator("#norm ~ .caption .save"), "gradient-norm.csv")
    assert [row[2].lower() for row in norms[8:11]] == ["1", "nan", "1"]
    tab.check()
    (hostile / "log.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0}) + "\n")
    page.wait_for_function("document.querySelectorAll('#runs td')[1]?.innerText.startsWith('1 of')", timeout=20_000)


def test_a_real_training_as_it_goes(tab: Tab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer's own log, its guard's alarm and its watch's horizons, on the page while it trains."""
    page, calls, real = tab.page, [0], updates.total_loss

    def total_loss(*given: Any) -> torch.Tensor:
        calls[0] += 1
        return real(*given) * (float("nan") if calls[0] == 20 else 1.0)

    monkeypatch.setattr(updates, "total_loss", total_loss)
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 60)
    config = LMConfig(
        text=str(tmp_path / "text.txt"), cell="gru", hidden=8, embedding=4, window=16, batch=4, steps=60,
        valid_every=20, checkpoint_every=20, threads=1,
    )  # fmt: skip
    page.goto(tab.server.address)
    page.wait_for_function("!document.getElementById('empty').hidden", timeout=20_000)
    states = []

    def look(record: Any) -> None:
        if record.step == 30:  # in the middle of it
            page.wait_for_function("document.querySelectorAll('#runs td')[1]?.innerText.startsWith('30 of')")
            states.append(page.locator("#runs td").first.inner_text())

    result = train(config, tmp_path / "run", on_step=look, on_incident=lambda _: None)
    page.wait_for_function("document.querySelector('#runs td')?.innerText === 'finished'", timeout=20_000)
    assert states == ["training"] and page.locator("#runs tr").count() == 1
    [incident] = result.incidents
    assert f"step {incident.iteration}: " in page.inner_text("#alarms")
    page.wait_for_selector("#horizon svg path.mark, #horizon svg path.open")
    last = next(r for r in reversed(result.watched) if r.recurrences)
    far = last.recurrences[0].horizon
    assert far is not None  # the last step is measured after the run has ended
    page.wait_for_function(
        "n => [...document.querySelectorAll('#runs td')].at(-1)?.innerText.endsWith(n)",
        arg=str(far.steps),
        timeout=20_000,
    )
    page.wait_for_selector("#maps canvas", timeout=20_000)
    reached = saved_rows(page, page.locator("#horizon ~ .caption .save"), "gradient-horizon.csv")
    assert reached[-1][0] == "run" and int(reached[-1][2]) == far.steps
    assert saved_rows(page, page.locator("#maps .save"), "map-0.csv")[0][:3] == ["t", "k", "lag"]
    tab.check()
