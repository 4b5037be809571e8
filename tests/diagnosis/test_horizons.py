"""What follows from the three horizons, in each case; the interval of a gradient horizon."""

import pytest
import torch

from throughtime.diagnosis import Horizons, dependence, gradient_interval, three_horizons
from throughtime.errors import FlowError
from throughtime.flow import GradientFlow, Horizon


def steps(n, at_least=False):
    return Horizon(n, at_least)


near, far, farther = steps(5), steps(40), steps(60)
wide = (steps(30), steps(70))

CASES = {
    "unknown": Horizons(gradient=near),
    "no dependency": Horizons(steps(-1), near),
    "no memory": Horizons(steps(0), near, steps(0)),
    "window": Horizons(far, steps(19, True), window=20),
    "vanishes": Horizons(far, near, near, window=64),
    "unclear": Horizons(far, steps(35), near, gradient_interval=wide),
    "reaches": Horizons(far, farther),
    "unused": Horizons(far, farther, near),
    "healthy": Horizons(far, farther, far, window=64),
}


@pytest.mark.parametrize("case", CASES)
def test_cases(case):
    h = CASES[case]
    assert h.case == case
    assert h.finding().severity == ("warning" if case in ("window", "vanishes", "unused") else "note")
    assert h.finding().means in h.sentence() == str(h)


def test_what_is_not_used_is_not_lost_where_nearer_inputs_say_the_same():
    h = Horizons(far, farther, near, added=0.005)
    assert h.case == "nearer" and h.finding().severity == "note" and not h.finding().do
    assert "than the model uses adds nothing" in h.sentence()
    assert Horizons(far, farther, near, added=0.02).case == "unused"
    short = Horizons(far, near, near, added=0.005)
    assert short.case == "nearer" and "than the gradient reaches adds nothing" in short.sentence()


def test_an_interval_of_nothing_is_none():
    h = Horizons(far, farther, steps(-1), use_interval=(steps(-1), steps(-1)))
    assert "the model uses no input (95 %: none)." in h.sentence()
    assert "(95 %: none to 5)" in Horizons(far, farther, near, use_interval=(steps(-1), near)).sentence()


def test_overlapping_intervals_are_not_told_apart():
    assert Horizons(far, farther, steps(35)).case == "unused"
    assert Horizons(far, farther, steps(35), data_interval=(steps(34), steps(50))).case == "healthy"
    assert Horizons(far, steps(35), data_interval=(steps(34), steps(50))).case == "unclear"
    assert Horizons(far, farther, steps(30, True)).case == "healthy"  # as far as was measured


def test_what_a_model_uses_is_in_the_data():
    """A parity of far inputs is in none of them alone; a model that uses them shows that it is there."""
    unseen = Horizons(steps(-1), near, far)
    assert unseen.asked == far and unseen.case == "vanishes"
    assert Horizons(steps(0), farther, far).case == "healthy"
    assert Horizons(near, farther, far, use_interval=wide).asked == far
    assert Horizons(near, farther, far, data_interval=(near, farther)).asked == near  # it may be the data as well
    assert Horizons(steps(19, True), farther, far).asked == steps(19, True)  # no farther lag was measured


def test_within_a_window_the_gradient_need_reach_no_farther():
    assert Horizons(steps(1000, True), steps(63, True), window=64).case == "window"
    assert Horizons(steps(1000, True), near, window=64).case == "vanishes"


def test_the_sentence():
    h = Horizons(far, near, near, gradient_interval=(steps(4), steps(7)), window=64)
    assert h.sentence() == (
        "The data reach back 40 steps, training looks back 63 steps, the gradient reaches 5 steps (95 %: 4 to 7), the "
        "model uses 5 steps. The gradient vanishes before the dependency in the data: the network cannot learn it "
        "as it is."
    )
    assert h.finding().what.endswith("uses 5 steps.")


def flow(rate, T=30, seed=0):
    """The map of a gradient that falls by `rate` a step, with noise from batch to batch."""
    gen = torch.Generator().manual_seed(seed)
    r = rate + 0.02 * torch.randn((), generator=gen, dtype=torch.float64)
    lag = torch.arange(T)[:, None] - torch.arange(T)
    return GradientFlow({"z": torch.where(lag >= 0, r ** lag.clamp(min=0), 0.0)}, "Simple")


def test_gradient_interval():
    flows = [flow(0.7, seed=s) for s in range(12)]
    low, high = gradient_interval(flows)
    point = three_horizons(flows=flows)
    assert point.gradient_interval == (low, high)
    assert 9 <= low.steps <= point.gradient.steps <= high.steps <= 15  # ln 0.01 / ln 0.7 = 12.9
    assert low.steps < high.steps
    same = [flow(0.7)] * 6
    assert gradient_interval(same) == (same[0].horizon(), same[0].horizon())
    assert gradient_interval([flow(0.999)] * 6)[1].at_least


def test_together():
    x = torch.randint(0, 4, (1000,))
    h = three_horizons(dependence(x, x.roll(20), range(25)), flow(0.7), window=64)
    assert h.data == Horizon(20, False)
    assert h.data_interval[0] == Horizon(20, False)
    assert h.gradient_interval is None
    assert h.case == "vanishes"


def test_refusals():
    with pytest.raises(FlowError, match="at least 5"):
        gradient_interval([flow(0.7)] * 4)
    with pytest.raises(FlowError, match="one recurrence"):
        gradient_interval([flow(0.7)] * 5 + [flow(0.7, T=9)])
    with pytest.raises(FlowError, match="not measured"):
        gradient_interval([flow(0.7)] * 5, of="c")
