"""The lab's small views show what the theory states: by closed forms, and by the numbers in what they tell."""

from __future__ import annotations

import math

import pytest
import torch

from throughtime.errors import ConfigError
from throughtime.flow.measure import recurrences
from throughtime.flow.shares import shares
from throughtime.live.lab import Setting, network
from throughtime.live.views import (
    VIEWS,
    Choice,
    Slider,
    adding,
    curse,
    depth,
    directions,
    inside,
    telling,
    update,
    whole,
    window,
)
from throughtime.live.views.chart import Curve
from throughtime.live.views.gates import gates
from throughtime.live.views.generating import generating
from throughtime.live.views.penalties import penalties
from throughtime.live.views.thresholds import history, thresholds


@pytest.mark.parametrize("name", VIEWS)
def test_every_limit_of_every_view_gives_a_chart(name: str) -> None:
    view = VIEWS[name]
    for end in ("low", "high"):
        words = {c.name: str(getattr(c, end)) for c in view.controls if isinstance(c, Slider)}
        found = view.measure(words)
        assert found["told"] and all(isinstance(t, str) and "nan" not in t for t in found["told"])
        assert all(len(c["x"]) == len(c["y"]) for c in found["curves"])
    for c in view.controls:
        for word in c.words if isinstance(c, Choice) else ():
            assert view.measure({c.name: word})["curves"]


def test_what_is_no_setting_is_refused() -> None:
    view = VIEWS["update"]
    for words, part in [
        ({"radius": "x"}, "radius must be a number"),
        ({"radius": "nan"}, r"radius must lie in 0\.\.3"),
        ({"cell": "no"}, "cell must be one of rnn"),
        ({"nope": "1"}, "no setting 'nope'"),
    ]:
        with pytest.raises(ConfigError, match=part):
            view.measure(words)
    with pytest.raises(ConfigError, match="2 places and 1 values"):
        Curve("x", [1, 2], [1]).plain()


def curves(chart: object) -> dict[str, list[float]]:
    return {c.name: list(c.y) for c in chart.curves}  # type: ignore[attr-defined]


def test_the_parts_of_an_update_are_those_of_autograd() -> None:
    layer, x = network(Setting(cell="gru", units=5, steps=9, radius=1))
    g = torch.zeros(9, 1, 5, dtype=torch.float64)
    g[-1] = torch.linspace(-1, 1, 5)
    r = recurrences(layer, x)[0][0]
    parts, whole_norm = update.by_lag(r, g)
    known = shares(r, g)["weight_hh"]
    assert known.by_lag.norm is not None
    torch.testing.assert_close(parts[: len(known.by_lag.norm)], known.by_lag.norm[:8])
    assert whole_norm == pytest.approx(float(known.gradient.norm()))


def test_an_update_stalls_and_one_is_too_long_and_one_is_no_number() -> None:
    assert "stalls" in update.update("rnn", 1, 30, -6).told[0]
    assert "too long" in update.update("rnn-identity", 1.5, 40, 0).told[0]
    assert any("last good checkpoint" in t for t in update.update("rnn-identity", 3, 160, -2).told)
    assert not any("last good checkpoint" in t for t in update.update("rnn", 1, 60, -2).told)
    vanished = update.update("rnn", 0.5, 60, -2).told[1]
    assert vanished.startswith("From lag ") and "rounded away" in vanished


def test_the_curse_meets_its_closed_form() -> None:
    a = torch.tensor([0.0, 0.5, 0.9], dtype=torch.float64)
    state, sensitivity = curse.measured(a, 400, 0)
    assert curse.closed_form(a) == pytest.approx([1.0, 1.25 / 0.75**3, 1.81 / 0.19**3])
    assert state == pytest.approx((1 / (1 - a**2)).tolist(), rel=0.35)
    many = [curse.measured(a, 400, seed)[1] for seed in range(12)]
    mean = torch.tensor(many).mean(0).tolist()
    assert mean == pytest.approx(curse.closed_form(a), rel=0.2)
    assert len(sensitivity) == 3


def test_depth_is_the_product_of_its_layers() -> None:
    linear = curves(depth.depth("rnn-identity", 6, 0.8, "no"))
    assert linear["down the layers"] == pytest.approx([0.8**n for n in range(6)])  # W is orthogonal, times 0.8
    bounded = curves(depth.depth("rnn", 6, 0.8, "no"))
    assert all(v <= b + 1e-12 for v, b in zip(*list(bounded.values())[::2], strict=True))
    plain, skipping = (curves(depth.depth("rnn", 8, 0.4, skip))["down the layers"][-1] for skip in ("no", "yes"))
    assert plain < 0.4**6 < 100 * plain < skipping


def test_each_direction_has_its_side_of_the_loss() -> None:
    chart = directions.directions("rnn", "output", 20, 0.9)
    past, future = chart.curves
    assert list(past.x) == list(range(21)) and list(future.x) == list(range(20, 60))
    # Against torch: channels that add 0 to each net input of each direction, and whose gradient is theirs.
    layer, x = directions._both("rnn", 0.9)
    known = torch.nn.RNN(4 + 24, 12, bidirectional=True, dtype=torch.float64)
    with torch.no_grad():
        for name, p in layer.named_parameters():
            wide = p
            if name.startswith("weight_ih"):
                own, none = torch.eye(12).double(), torch.zeros(12, 12).double()
                wide = torch.cat([p, none, own] if name.endswith("reverse") else [p, own, none], 1)
            known.get_parameter(name).copy_(wide)
    added = torch.zeros(60, 1, 24, dtype=torch.float64, requires_grad=True)
    drawn = torch.randn(24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (known(torch.cat([x, added], -1))[0][20, 0] * drawn).sum().backward()
    assert added.grad is not None
    sizes = added.grad[:, 0].view(60, 2, 12).norm(dim=-1)
    assert past.y == pytest.approx((sizes[:21, 0] / sizes[20, 0]).tolist(), rel=1e-9)
    assert future.y == pytest.approx((sizes[20:, 1] / sizes[20, 1]).tolist(), rel=1e-9)
    reach = max(d for d in range(21) if past.y[20 - d] >= 0.01)
    assert f"has read 21 steps, and 1 % of its gradient or more reaches {reach} steps back" in chart.told[0]
    last = directions.directions("gru", "last", 0, 0.9)
    assert list(last.curves[1].x) == [59] and "has read 1 step," in last.told[0]
    assert "both ways" in directions.directions("rnn", "ends", 0, 0.9).told[1]
    whole = directions.directions("rnn", "ends", 0, 0.9).curves
    assert [len(c.y) for c in whole] == [60, 60] and whole[0].y[-1] == whole[1].y[0] == 1


def test_the_same_gradient_and_two_verdicts() -> None:
    chart = telling.telling(20, "rnn", 0.7, "fitted")
    assert "The gradient vanishes before the dependency" in chart.told[0]
    assert "The current input is all that the target depends on" in chart.told[1]
    by = {c.name: c for c in chart.curves}
    assert list(by["data, task A"].x) == [20] and list(by["data, task B"].x) == [0]
    a, b = (torch.tensor(by[f"gradient, {task}"].y) for task in ("task A", "task B"))
    assert float((a.log10() - b.log10()).abs().max()) < 0.3  # alike to a factor of two, down to 1e-4
    unused = telling.telling(20, "rnn", 1.0, "drawn").told[0]
    assert "the model uses" in unused and "does not use what lies that far back" in unused


def test_a_memory_held_constant_is_a_wrong_answer() -> None:
    chart = whole.whole(5, 0.5, 100)
    profiles = list(curves(chart).values())
    assert profiles[0][50] > 0.5 and profiles[1][50] > 0.5 and profiles[2][2] < 0.2
    shut = list(curves(whole.whole(-2, 0, 30)).values())  # U is 0: all that comes back runs along the carousel
    assert shut[0] == pytest.approx(shut[1])


def test_four_ways_add_up() -> None:
    for parameter in ("weight_hh", "weight_ih", "bias_ih"):
        chart = adding.adding("lstm", parameter, 1)
        assert len(chart.curves) == 4
        for c in chart.curves:
            assert sum(c.y) == pytest.approx(1)


def test_clipping_turns_or_keeps() -> None:
    chart = inside.inside(1.3, 60, 0, "rnn-identity")
    plain, clipped = curves(chart).values()
    assert plain[-1] > 1e3 and max(clipped) < 50
    assert "by norm it is turned by 0°" in chart.told[1]
    near, far = curves(inside.inside(0.9, 20, 3, "rnn")).values()
    assert near == pytest.approx(far)  # nothing reaches the threshold


def test_a_window_cuts_and_a_state_goes_on() -> None:
    whole_window = window.window("lstm", 96, 0.8, "yes")
    assert curves(whole_window)["windows of 96"] == pytest.approx(curves(whole_window)["full back-propagation"])
    carried, fresh = (window.window("lstm", 16, 0.8, word) for word in ("yes", "no"))
    assert "the same as without windows" in carried.told[1] and "usual mistake" in fresh.told[1]
    assert len(curves(carried)["windows of 16"]) == 16
    assert all(a <= b + 1e-12 for a, b in zip(curves(carried)["windows of 16"], whole_window.curves[0].y, strict=False))


def test_thresholds_follow_the_norm() -> None:
    norms = history(2, 4)
    assert len(norms) == 240 and max(norms) > 10 * sorted(norms)[-5]
    fixed = curves(thresholds("fixed", 1.5, 2, 4))
    assert fixed["after"] == pytest.approx([min(v, 10**1.5) for v in norms])
    assert max(curves(thresholds("auto", 1.5, 2, 4))["after"]) < max(norms) / 5
    assert max(curves(thresholds("z", 1.5, 2, 4))["after"]) < max(norms) / 3


def test_gates_at_the_start() -> None:
    found = curves(gates(1, 100))
    assert found["one bias for all"][12] == pytest.approx(math.log(0.5) / math.log(1 / (1 + math.exp(-1))), rel=0.3)
    assert found["chrono"][-1] > 4 * found["chrono"][0] > 4 * found["torch's own"][-1] / 2


def test_penalties_keep_the_gradient() -> None:
    for penalty in ("flossing", "omega"):
        before, after = curves(penalties(penalty, 3, 0.5, -0.5)).values()
        assert after[-1] > 100 * before[-1]
    still = curves(penalties("flossing", 0, 0.5, -0.5))
    assert still["before"] == pytest.approx(still["after 0 steps"])


def test_noise_keeps_a_generating_network_on_its_wave() -> None:
    without, noisy = generating(-3, 0, 0.9, 0).told
    assert "leaves the wave altogether" in without and "follows the wave" in noisy
