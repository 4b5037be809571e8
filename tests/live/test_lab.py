"""The lab shows what the engine measures: the sliders move what they say, within their limits."""

import base64
import math

import pytest
import torch

from throughtime import cells
from throughtime.errors import ConfigError
from throughtime.live.lab import Setting, keeping_gates, measure, network


@pytest.mark.parametrize("name", cells.NAMES)
def test_every_cell_can_be_picked(name):
    told = measure(Setting(cell=name, units=5, steps=12, seed=3))
    assert "trouble" not in told
    assert told["equations"] and set(told["states"]) == set(cells.by_name(name).states)
    assert told["flow"]["z"]["profile"][0] == 1
    for part in told["flow"].values():
        picture = part["map"]
        data = base64.b64decode(picture["data"])
        assert len(data) == picture["rows"] * picture["columns"] == 144
        assert max(data) == 255


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_the_radius_is_what_the_slider_says(name):
    told = measure(Setting(cell=name, units=9, steps=5, radius=0.7))
    assert [m["spectral_radius"] for m in told["matrices"]] == pytest.approx([0.7] * len(told["matrices"]))
    assert max(math.hypot(*e) for e in told["eigenvalues"]["U"]) == pytest.approx(0.7)


def test_the_matrix_is_drawn_as_asked():
    for matrix in ("orthogonal", "identity"):
        U = network(Setting(cell="rnn", units=7, radius=0.9, matrix=matrix))[0].weight_hh_l0.detach()
        torch.testing.assert_close(U @ U.T, 0.81 * torch.eye(7, dtype=U.dtype))
    assert torch.equal(U, 0.9 * torch.eye(7, dtype=U.dtype))


def test_the_truncated_gradient_runs_along_the_carousel_only():
    told = measure(Setting(cell="lstm-1997", rule="truncated", steps=30))
    assert told["flow"]["c"]["profile"] == pytest.approx([1] * 30)


def test_which_gate_keeps():
    kept = {name: keeping_gates(cells.by_name(name)) for name in cells.NAMES}
    assert kept["lstm"] == kept["lstm-peephole"] == ["f"]
    assert kept["gru"] == kept["gru-reset-before"] == ["u"]
    assert kept["lstm-1997"] == kept["rnn"] == kept["additive-memory"] == []


def test_the_linear_network_meets_the_closed_form():
    told = measure(Setting(cell="rnn-identity", units=1, steps=20, radius=0.5))
    torch.testing.assert_close(torch.tensor(told["flow"]["h"]["profile"]), 0.5 ** torch.arange(20.0))
    assert told["flow"]["h"]["half_life"] == pytest.approx(1)
    assert told["bound"] == pytest.approx(0.5)


def test_an_open_forget_gate_holds_the_gradient():
    shut, wide = (measure(Setting(forget=bias, steps=50))["flow"]["c"] for bias in (-2, 6))
    assert shut["horizon"] < 10 and wide["horizon"] == 49


def test_two_cells_hear_the_same():
    x = [network(Setting(cell=name, steps=7, units=h))[1] for name, h in (("rnn", 4), ("lstm", 9))]
    assert torch.equal(*x)


def test_an_explosion_is_drawn_as_one():
    told = measure(Setting(cell="rnn-identity", radius=3, steps=160, units=8))
    assert told["flow"]["h"]["profile"][-1] > 1e60 and told["flow"]["h"]["half_life"] is None


def test_words_from_a_page():
    assert Setting.read({"cell": "gru", "units": "8", "radius": "1.5"}) == Setting(cell="gru", units=8, radius=1.5)
    for words, part in [
        ({"units": "1000"}, "units must lie in 1..48"),
        ({"steps": "x"}, "steps must be a number"),
        ({"radius": "nan"}, "radius must lie in"),
        ({"cell": "nope"}, "unknown cell"),
        ({"color": "red"}, "no setting 'color'"),
        ({"loss": "first"}, "loss must be one of last, every"),
        ({"matrix": "dense"}, "matrix must be one of"),
    ]:
        with pytest.raises(Exception, match=part) as caught:
            Setting.read(words)
        assert type(caught.value).__module__ == "throughtime.errors"


def test_limits_hold():
    with pytest.raises(ConfigError, match=r"forget must lie in -8\.\.8; came 9"):
        Setting(forget=9)
