"""Hostile text is shown, never obeyed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from throughtime.report.text import escape, script_json, visible, visible_html


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x00", "\u2039NUL\u203a"),
        ("\x1b[31m", "\u2039ESC\u203a[31m"),
        ("\x7f", "\u2039DEL\u203a"),
        ("\x85", "\u2039U+0085\u203a"),
        ("a\u202eb", "a\u2039U+202E\u203ab"),
        ("\u2028", "\u2039U+2028\u203a"),
        ("\ud800", "\u2039U+D800\u203a"),
        ("\uffff", "\u2039U+FFFF\u203a"),
        ("\ufeff", "\u2039U+FEFF\u203a"),
        ("a\r\nb\rc", "a\nb\u2039CR\u203ac"),
        ("\u05d0 \u0645\u06cc\u200c\u062e \u00e9 \U0001f600", None),
    ],
)
def test_visible(raw: str, shown: str | None) -> None:
    assert visible(raw) == (raw if shown is None else shown)


def test_html_escapes_text_and_marks_signs() -> None:
    assert visible_html("<b>&\"'\x00") == (
        '&lt;b&gt;&amp;&quot;&#x27;<span class="sign" title="U+0000">\u2039NUL\u203a</span>'
    )
    assert visible_html("a\tb").endswith("</span>\tb")
    assert escape('"><i>') == "&quot;&gt;&lt;i&gt;"


ANY = st.text(st.characters(exclude_categories=[]))


@given(ANY)
def test_any_text_can_be_written_and_hides_nothing(text: str) -> None:
    for shown in (visible(text), visible_html(text), escape(text)):
        shown.encode("utf-8")
        assert not any(ord(c) < 32 and c not in "\n\t" for c in shown)
        assert not set(shown) & set("\x7f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\ufeff")
    assert "<" not in escape(text)


@given(st.recursive(ANY | st.integers() | st.floats(allow_nan=False, allow_infinity=False), st.lists))
def test_script_json_round_trips_and_cannot_end_its_element(value: object) -> None:
    text = script_json(value)
    assert json.loads(text) == value
    assert text.isascii()
    assert not set(text) & set("<>&")


def test_script_json_refuses_what_json_has_not() -> None:
    with pytest.raises(ValueError, match="JSON"):
        script_json(float("nan"))
