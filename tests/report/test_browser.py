"""A report opened from disk in a real browser: no complaint, nothing fetched, axe finds no fault, the keys work."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from throughtime.report import GatesView, ModelView, Page, ReadingView, write

playwright = pytest.importorskip("playwright.sync_api", reason="the extra `browser` is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the extra `browser` is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as p:
        started = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


def opened(browser: Any, path: Path, width: int, scheme: str) -> tuple[Any, list[str]]:
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True, bypass_csp=True
    )
    page, complaints = context.new_page(), []
    page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.on("request", lambda r: r.url.startswith(("file:", "data:", "blob:")) or complaints.append(r.url))
    page.goto(path.as_uri())
    return page, complaints


def report(T: int, H: int, layers: int) -> Page:
    lags, read = torch.arange(T, dtype=torch.float64), min(T, 300)
    sizes = torch.exp(-(lags[:, None] - lags[None]).abs() / 20).tril()
    reading = ReadingView(
        list("abc d\u00e9\n" * 60)[: read + 1], [1.0] * read, sizes[:read, :read], sizes[:read, :read],
        {"i": [0.5] * read},
    )  # fmt: skip
    gates = GatesView({"i": [0.05] * 20, "f": [0.05] * 20}, [f"regime {k}" for k in range(8)], [[1 / 8] * 8] * H)
    plane = {"U": [(0.9, 0.1)] * H, "J": [(0.5, -0.5)] * H}
    models = [
        ModelView(
            f"rnn, layer {n}",
            "LSTM",
            profile={"z": torch.exp(-lags / 20)},
            maps={"z": sizes},
            horizon={"z": min(92, T - 1)},
            half_life={"z": 14.0},
            gates=gates,
            reading=reading,
            shares={"weight_hh": torch.exp(-lags / 20) / 20},
            eigenvalues=plane,
            norms=[(s, 1 / s) for s in range(1, 400)],
            clip=0.5,
        )
        for n in range(layers)
    ]
    return Page("Report", "It vanishes.", models, T, data_horizon=50)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_no_complaint_and_no_violation(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    path = write(report(60, 16, 2), tmp_path / "x.html")
    page, complaints = opened(browser, path, width, scheme)
    page.wait_for_selector("#figure-reading .now")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    found = axe.Axe().run(page).response["violations"]
    bad = [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")]
    assert bad == [] and complaints == []


def test_the_text_is_stepped_through_by_keys(browser: Any, tmp_path: Path) -> None:
    page, complaints = opened(browser, write(report(60, 4, 1), tmp_path / "x.html"), 1280, "light")
    text = page.locator(".reading")
    before = int(text.get_attribute("aria-valuenow"))
    text.focus()
    page.keyboard.press("ArrowRight")
    assert int(text.get_attribute("aria-valuenow")) == before + 1
    page.keyboard.press("Home")
    assert text.get_attribute("aria-valuenow") == "1" and page.locator(".reading .now").count() == 1
    shaded = "[...document.querySelectorAll('.reading span')].filter(s => s.style.backgroundColor).length"
    assert page.evaluate(shaded) == 1
    page.keyboard.press("End")
    assert page.evaluate(shaded) > 30 and complaints == []


def test_a_large_report_is_small_and_opens_soon(browser: Any, tmp_path: Path) -> None:
    path = write(report(1000, 512, 4), tmp_path / "x.html")
    assert path.stat().st_size < 5e6
    began = time.perf_counter()
    page, complaints = opened(browser, path, 1280, "light")
    page.wait_for_selector("#figure-reading .now")
    print(f"{path.stat().st_size / 1e6:.2f} MB, opened in {time.perf_counter() - began:.2f} s")
    assert complaints == []
