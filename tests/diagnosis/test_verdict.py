"""The sentence says what the numbers say, in each case."""

import pytest

from throughtime.diagnosis import verdict
from throughtime.errors import ConfigError
from throughtime.flow import Horizon

far, near = Horizon(60, False), Horizon(9, False)


def test_one_can_and_one_cannot():
    text = verdict(Horizon(40, False), {"LSTM": far, "RNN": near}, window=64)
    assert text == (
        "What comes next depends on what came 40 steps back; the gradient of the RNN vanishes after 9 steps, "
        "the gradient of the LSTM reaches 60 steps: only the LSTM can learn all of it."
    )


def test_the_window_bounds_what_can_be_asked():
    text = verdict(Horizon(1000, True), {"LSTM": Horizon(63, True), "RNN": near}, window=64)
    assert "at least 1000 steps back (training looks back 63)" in text
    assert text.endswith("the gradient of the LSTM reaches at least 63 steps: only the LSTM can learn all of it.")


def test_all_can():
    text = verdict(Horizon(5, False), {"RNN": near, "LSTM": far}, window=64)
    assert text.endswith(
        "reaches 9 steps, the gradient of the LSTM reaches 60 steps: each of them can learn all of it."
    )


def test_none_can():
    asked = Horizon(90, False)
    text = verdict(asked, {"RNN": near, "LSTM": far}, window=128)
    assert text.endswith(
        "the gradient of the LSTM vanishes after 60 steps: only the LSTM learns what lies 10 to 60 steps back, "
        "and neither much of what lies farther."
    )
    assert "none much of what" in verdict(asked, {"RNN": near, "LSTM": far, "GRU": near}, window=128)
    assert "learns what lies 10 steps back" in verdict(asked, {"RNN": near, "LSTM": Horizon(10, False)}, window=128)


def test_none_can_and_they_are_alike():
    text = verdict(Horizon(90, False), {"RNN": near, "other": near}, window=128)
    assert text.endswith("neither learns much of what lies more than 9 steps back.")


def test_one_model():
    asked = Horizon(90, False)
    assert verdict(asked, {"RNN": near}, 128).endswith("9 steps: it hardly learns what lies more than 9 steps back.")
    assert verdict(near, {"RNN": near}, 128).endswith("reaches 9 steps: it can learn all of it.")


def test_nothing_to_remember():
    assert "nothing to remember" in verdict(Horizon(-1, False), {"RNN": near}, 64)


def test_no_model():
    with pytest.raises(ConfigError, match="at least one"):
        verdict(far, {}, 64)
