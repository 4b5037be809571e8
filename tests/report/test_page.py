"""A page is whole, says its numbers without a script, loads nothing, and holds its data as valid JSON."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import re
from typing import Any

import pytest

from throughtime.flow import Horizon
from throughtime.report import DependenceView, ModelView, Page, SampleView, render
from throughtime.report.pack import PackedMap, unpack

from .conftest import HOSTILE


def test_the_numbers_stand_in_the_html(page: Page, read: Any) -> None:
    text = read(page).text
    for words in (
        "Two networks",
        "The second one reaches farther.",
        "The text asks for",
        "14",
        "1.36",
        "6.58",
        "3.73",
        "h_t = tanh(z_t)",
        "To be",
        " or not",
        "seconds",
        "12.25",
        "Half-life",
        "Hochreiter, S. (1991)",
    ):
        assert words in text
    assert "Figure 4." in text and "Figure 5." not in text


def test_the_data_round_trip(page: Page, read: Any) -> None:
    data = read(page).data
    assert data["window"] == 24 and data["dataHorizon"] == {"steps": 14, "atLeast": False}
    for view, shown in zip(page.models, data["models"], strict=True):
        assert shown["name"] == view.name
        assert shown["profile"]["h"] == pytest.approx(view.profile["h"], rel=1e-5)
        packed = PackedMap(**shown["maps"]["h"])
        back = unpack(packed)
        for t, row in enumerate(view.maps["h"]):
            for k in range(t + 1):
                assert abs(math.log10(back[t][k] / row[k])) <= packed.error + 1e-12
        assert shown["history"]["train"]["step"] == [step for step, _, _ in view.history]
        assert shown["history"]["valid"]["step"] == [10, 20, 30, 40, 50]


def test_hostile_text_stays_text_everywhere(model: Any, read: Any) -> None:
    clean = read(Page("t", "v", [model()], 24, settings={"a": 1}, floors={"f": 6.0}))
    bad = model(HOSTILE, cell=HOSTILE, equations=HOSTILE, sample=SampleView(HOSTILE, HOSTILE))
    hostile = read(
        Page(
            HOSTILE,
            HOSTILE,
            [bad],
            24,
            settings={HOSTILE: HOSTILE},
            floors={HOSTILE: 6.0},
            unit=HOSTILE,
            dateline=HOSTILE,
        )
    )
    without_signs = [(tag, a) for tag, a in hostile.tags if a.get("class") != "sign"]
    assert [tag for tag, _ in without_signs] == [tag for tag, _ in clean.tags]
    assert hostile.scripts == clean.scripts and hostile.styles == clean.styles
    assert "</script><script>alert(1)</script><!-- {{data}}" in hostile.text
    assert hostile.data["models"][0]["name"].startswith("</script><script>alert(1)")
    assert not set(hostile.text) & set("\x00\x1b\u2028\u2029\u202e\ud800")


def test_any_state_name_is_shown_as_text(model: Any, read: Any) -> None:
    view = model(horizon={HOSTILE: 3}, profile={HOSTILE: [1.0, 0.5]}, maps={HOSTILE: [[1.0]]}, half_life={HOSTILE: 1.0})
    data = read(Page("t", "v", [view], 24)).data
    shown = data["models"][0]
    assert list(shown["maps"]) == list(shown["profile"]) == list(data["stateNames"]) == [shown["state"]]


def test_nothing_is_loaded_and_only_its_own_script_runs(page: Page, read: Any) -> None:
    whole, parts = render(page), read(page)
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", whole))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    assert "@import" not in whole and not re.search(r"url\((?!#)", whole)
    assert not parts.named("link") and not parts.named("img") and not parts.named("iframe")
    assert all("src" not in a for _, a in parts.tags)
    assert {a["href"] for a in parts.named("a")} == {"#main"}
    assert not any(name.startswith("on") or name == "style" for _, a in parts.tags for name in a)
    metas = parts.named("meta")
    policy = next(a["content"] for a in metas if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")
    for kind, source in (("script-src", parts.scripts), ("style-src", parts.styles)):
        digest = base64.b64encode(hashlib.sha256("".join(source).encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}';" in policy


def test_the_script_builds_with_text_only(page: Page, read: Any) -> None:
    script = "".join(read(page).scripts)
    for unsafe in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "fetch(",
        "XMLHttpRequest",
        "import(",
    ):
        assert unsafe not in script


def test_every_figure_has_a_name(page: Page, read: Any) -> None:
    parts = read(page)
    captions = {a["id"] for a in parts.named("figcaption")}
    assert len(captions) == 4
    assert {a["aria-labelledby"] for a in parts.named("figure")} == captions


def test_window_256_with_two_states_is_well_under_a_megabyte(model: Any) -> None:
    rows = [[1 / (1 + t - k) ** 2 if k <= t else 0.0 for k in range(256)] for t in range(256)]
    models = [model(name, maps={"h": rows, "c": rows}) for name in ("RNN", "LSTM")]
    assert len(render(Page("t", "v", models, 256)).encode()) < 600_000


def test_a_longer_window_and_history_stay_small_and_say_so(model: Any, read: Any) -> None:
    rows = [[1.0 if k <= t else 0.0 for k in range(800)] for t in range(800)]
    history = [(step, 5.0, 5.0) for step in range(20_000)]
    page = Page("t", "v", [model(maps={"h": rows, "c": rows}, history=history)], 800)
    parts = read(page)
    assert len(render(page).encode()) < 1_000_000
    shown = parts.data["models"][0]
    assert shown["maps"]["h"]["stride"] == 2 and shown["maps"]["h"]["size"] == 400
    assert "One step in 2 is kept" in parts.text and "mean of up to 14 records" in parts.text
    assert shown["history"]["train"]["step"][-1] == shown["history"]["valid"]["step"][-1] == 19_999


def test_averaging_a_history_keeps_what_went_wrong(model: Any, read: Any) -> None:
    history = [(step, math.nan if step == 4001 else 2.0 + step % 2, None) for step in range(6000)]
    bits = read(Page("t", "v", [model(history=history)], 24)).data["models"][0]["history"]["train"]["bits"]
    assert len(bits) == 1500 and bits.count("nan") == 1 and bits.index("nan") == 1000
    assert set(bits) == {"nan", 2.5}


def test_what_is_not_finite_is_said(model: Any, read: Any) -> None:
    view = model(
        profile={"h": [1.0, math.inf, math.nan, 0.0]},
        maps={"h": [[math.nan, 0], [math.inf, 1.0]]},
        history=[(1, 5.0, 5.0), (2, math.nan, math.inf)],
        half_life={"h": math.nan},
    )
    parts = read(Page("t", "v", [view], 24))
    shown = parts.data["models"][0]
    assert shown["profile"]["h"] == [1, "inf", "nan", 0] and shown["halfLife"]["h"] == "nan"
    assert shown["history"]["train"] == {"step": [1, 2], "bits": [5, "nan"]}
    assert shown["history"]["valid"] == {"step": [1, 2], "bits": [5, "inf"]}
    assert "NaN" in parts.text and "\u221e" in parts.text


def test_half_life_beyond_the_window_and_open_horizons(model: Any, read: Any) -> None:
    view = model(half_life={"h": math.inf}, horizon={"h": Horizon(23, True)})
    text = read(Page("t", "v", [view], 24)).text
    assert "> 23" in text and "\u2265 23" in text


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_any_number_of_models(count: int, model: Any, read: Any) -> None:
    parts = read(Page("t", "v", [model(f"m{i}", steps=1 + 3 * i) for i in range(count)], 24))
    assert [m["name"] for m in parts.data["models"]] == [f"m{i}" for i in range(count)]
    assert len(parts.named("article")) == count


def test_one_step_and_one_record(model: Any, read: Any) -> None:
    view = model(steps=1, history=[(1, 4.0, None)], horizon={"h": 0})
    parts = read(Page("t", "v", [view], 1, dependence=DependenceView([1], [0.5], [0.1])))
    assert parts.data["models"][0]["maps"]["h"]["size"] == 1 and len(parts.named("figure")) == 4


def test_parts_without_data_are_left_out(read: Any) -> None:
    parts = read(Page("t", "v", [ModelView("RNN", "rnn")], 8))
    assert not parts.named("figure") and not parts.named("article")
    assert "not measured" in parts.text and "Gradient horizon" in parts.text
    assert json.dumps(parts.data)


def test_in_use_is_a_column_only_where_measured(page: Page, model: Any, read: Any) -> None:
    assert "In use" not in read(page).text
    assert "In use" in read(dataclasses.replace(page, models=[model(use=Horizon(7, False))])).text


def test_the_same_page_is_the_same_file(page: Page) -> None:
    assert render(page) == render(page)
