"""The sentence says what the numbers say, in each case."""

import pytest

from throughtime.diagnose import verdict
from throughtime.errors import ConfigError
from throughtime.flow import Horizon

far, near = Horizon(60, False), Horizon(9, False)


def test_one_can_and_one_cannot():
    text = verdict(Horizon(40, False), {"RNN": near, "LSTM": far}, window=64)
    assert text == (
        "What comes next depends on what came 40 steps back; the gradient of the RNN vanishes after 9 steps, "
        "that of the LSTM reaches 60 steps: only the LSTM can learn all of it."
    )


def test_the_window_bounds_what_can_be_asked():
    text = verdict(Horizon(1000, True), {"LSTM": Horizon(63, True), "RNN": near}, window=64)
    assert "at least 1000 steps back (training looks back 63)" in text
    assert text.endswith("that of the LSTM reaches at least 63 steps: only the LSTM can learn all of it.")


def test_all_can():
    text = verdict(Horizon(5, False), {"RNN": near, "LSTM": far}, window=64)
    assert "the gradient of the RNN reaches 9 steps, that of the LSTM reaches 60 steps: each of them can" in text


def test_none_can():
    text = verdict(Horizon(90, False), {"RNN": near, "LSTM": far}, window=128)
    assert text.endswith("neither can learn all of it, and the LSTM comes farthest.")
    three = verdict(Horizon(90, False), {"RNN": near, "LSTM": far, "GRU": near}, window=128)
    assert "none can learn all of it, and the LSTM comes farthest" in three


def test_one_model():
    assert verdict(Horizon(90, False), {"RNN": near}, 128).endswith(
        "vanishes after 9 steps: it cannot learn all of it."
    )
    assert verdict(Horizon(9, False), {"RNN": near}, 128).endswith("reaches 9 steps: it can learn it.")


def test_nothing_to_remember():
    assert "nothing to remember" in verdict(Horizon(-1, False), {"RNN": near}, 64)


def test_no_model():
    with pytest.raises(ConfigError, match="at least one"):
        verdict(far, {}, 64)
