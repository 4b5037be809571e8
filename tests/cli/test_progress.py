"""Tests of throughtime.cli.progress."""

from __future__ import annotations

import io

import pytest

from throughtime.cli.progress import Board, _duration
from throughtime.train import StepRecord


def record(step: int, valid: float | None = None) -> StepRecord:
    return StepRecord(step, 2.5, 0.125, 0.5, valid)


def test_plain_lines_come_every_so_often_at_validations_and_at_the_end() -> None:
    out = io.StringIO()
    with Board(4, out) as board:
        one, two = board.add("[one]", 6), board.add("two", 9, start=4)
        for step in range(1, 7):
            one(record(step, valid=3.0 if step == 3 else None))
        two(record(5))
        two(record(9))
    assert out.getvalue().splitlines() == [
        "[one]  step 3/6  2.500 bits  valid 3.000  |grad| 0.125  2 steps/s  0:02 left",
        "[one]  step 4/6  2.500 bits  valid 3.000  |grad| 0.125  2 steps/s  0:01 left",
        "[one]  step 6/6  2.500 bits  valid 3.000  |grad| 0.125  2 steps/s  0:00 left",
        "two  step 9/9  2.500 bits  |grad| 0.125  2 steps/s  0:00 left",
    ]


@pytest.mark.parametrize(("no_color", "escape"), [(None, True), ("1", False)])
def test_a_terminal_gets_bars_without_colour_where_that_is_asked(
    monkeypatch: pytest.MonkeyPatch, no_color: str | None, escape: bool
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", no_color)
    out = Terminal()
    with Board(4, out) as board:
        on_step = board.add("lstm", 200)
        on_step(record(199))
        on_step(record(200, valid=3.0))
    text = out.getvalue()
    assert "lstm" in text
    assert "200/200" in text and "2.500 bits  valid 3.000  |grad| 0.125  2/s  0:00 left" in text
    assert ("\x1b[38;5;" in text) == escape


def test_durations() -> None:
    assert [_duration(s) for s in (0, 59.6, 3599, 3600, 360000)] == [
        "0:00",
        "1:00",
        "59:59",
        "1:00:00",
        "100:00:00",
    ]
