"""How often is measured: by a clock that only the test moves."""

import math
from itertools import pairwise

import pytest

import throughtime as tt
from tests.diagnosis.watched import Net, Ticks, train
from throughtime.diagnosis.budget import CATCHING, Budget
from throughtime.diagnosis.observe import WORK
from throughtime.diagnosis.watch_step import Measuring, Pending
from throughtime.diagnosis.watcher import SOME

LOOK, CATCH = 2.0, 0.1  # seconds that it takes here to measure a step, and to catch one


@pytest.fixture
def clock(monkeypatch):
    clock, look, close = Ticks(), Pending.look, Measuring.close

    def timed(method, seconds):
        def call(*args, **kwargs):
            clock.pass_(seconds)
            return method(*args, **kwargs)

        return call

    monkeypatch.setattr(Pending, "look", timed(look, LOOK))
    monkeypatch.setattr(Measuring, "close", timed(close, CATCH))
    return clock


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_the_share_is_kept_and_used(clock, share):
    model, steps = Net(layers=1), 300
    w, _ = train(model, steps, watching=tt.watch(model, share, clock=clock), after=lambda n: clock.pass_(1), length=3)
    assert w.budget.training == pytest.approx(steps) and w.cost == pytest.approx(w.budget.watching / steps)
    # All in all the share is kept, what is measured at the end included, and all but used up.
    assert w.history[-1].cost == pytest.approx(w.cost, rel=0.1)
    assert share - 2.5 * (LOOK + CATCH) / steps < w.cost <= share
    gaps = [b.step - a.step for a, b in pairwise(w.history[:-1])]
    assert len(gaps) > 2 and all(abs(gap - LOOK / share) <= 0.5 * LOOK / share + 2 for gap in gaps[1:]), gaps


def test_a_measurement_waits_until_it_fits():
    clock = Ticks()
    budget = Budget(0.02, clock)
    assert budget.due() and budget.cost == 0
    budget.begin()
    clock.pass_(1)
    assert budget.watching == 1
    budget.end()
    budget.measured(1)
    clock.pass_(49)
    assert not budget.due()
    clock.pass_(100.9)  # 1 and 1 for it and 1 for the last, 3 <= 0.02 * 149.9 is not yet so
    assert not budget.due()
    clock.pass_(0.2)
    assert budget.due() and budget.cost == pytest.approx(1 / 150.1)
    budget.took_longer(1)
    assert not budget.due()  # the next may take 2
    budget.stop()
    budget.begin()
    clock.pass_(1000)
    budget.end()
    assert budget.elapsed == pytest.approx(151.1) and budget.cost == pytest.approx(1001 / 150.1)


def test_to_catch_a_step_has_a_share_of_its_own():
    clock = Ticks()
    budget = Budget(0.02, clock)
    budget.measured(10, 0.05)
    assert not budget.may_catch()
    clock.pass_(0.05 / 0.02 / CATCHING + 1e-6)
    assert budget.may_catch() and not budget.due()
    budget.caught(0.05)
    assert not budget.may_catch()


@pytest.mark.parametrize("times", [(), (3.0,), (3.0, 2.0), (1.0, 5.0, 2.0)])
@pytest.mark.parametrize("catching", [0.0, 0.1, 4.0])
def test_wait_is_how_long_neither_fits(times, catching):
    clock = Ticks()
    budget = Budget(0.05, clock)
    for seconds in times:
        budget.spend(seconds)
        budget.measured(seconds, 0.2)
        clock.pass_(seconds)
    if catching:
        budget.spend(catching)
        budget.caught(catching)
        clock.pass_(catching)
    wait = budget.wait()
    assert wait > 0 if times else budget.due() and wait == 0
    clock.pass_(max(0.0, wait - 1e-6))
    assert not times or not (budget.due() or budget.may_catch())
    clock.pass_(2e-6)
    assert budget.due() or budget.may_catch()


def test_zero_measures_once_and_infinity_always():
    once, always = Budget(0, Ticks(1)), Budget(math.inf, Ticks(1))
    for b in (once, always):
        b.measured(1)
    assert not once.due() and always.due() and once.cost == 0
    model = Net(layers=1)
    w, _ = train(model, 5, watching=tt.watch(model, 0))
    assert len(w.history) == 1 and w.history[0].step == 1


def test_what_was_caught_last_is_measured_at_the_end(clock):
    model = Net(layers=1)
    w, _ = train(model, 60, watching=tt.watch(model, 0.02, clock=clock), after=lambda n: clock.pass_(1))
    # Too short for a second measurement; the last step that was caught is measured when training is over.
    first, last = w.history
    assert first.step == 1 and 20 < last.step <= 60 and first.updates and last.updates
    assert w.diagnosis().updates.measured and w.cost > 0.02


@pytest.fixture
def slow(monkeypatch):
    """A watch whose measuring takes a second for all the work that it may do, and less for less."""
    clock, works, look = Ticks(), [], Pending.look

    def timed(self, turn, work=None):
        works.append(work)
        clock.pass_(1.0 if work is None else min(1.0, work / WORK))
        return look(self, turn, work)

    monkeypatch.setattr(Pending, "look", timed)
    monkeypatch.setattr(Pending, "estimated", property(lambda self: True))
    return clock, works


def test_the_first_measurement_is_kept_short_and_the_next_waits_for_a_whole_one(slow):
    clock, works = slow
    model = Net(layers=1)
    w, _ = train(model, 60, watching=tt.watch(model, 0.1, clock=clock), after=lambda n: clock.pass_(1), length=3)
    assert works[0] == SOME and works[1] is None and len(works) >= 3
    assert w.history[1].step >= 20, "0.1 s and twice a whole second fit a tenth of 21 seconds"
    assert w.cost <= 0.1


def test_a_short_run_measures_its_last_step_with_what_is_left(slow):
    clock, works = slow
    model = Net(layers=1)
    w, _ = train(model, 8, watching=tt.watch(model, 0.1, clock=clock), after=lambda n: clock.pass_(1), length=3)
    assert works[0] == SOME and len(works) == 2 and SOME <= works[1] < WORK
    assert w.cost <= 0.1 and len(w.history) == 2


@pytest.mark.parametrize("share", [0.0, math.inf])
def test_without_a_limit_the_first_is_whole(slow, share):
    clock, works = slow
    model = Net(layers=1)
    train(model, 3, watching=tt.watch(model, share, clock=clock), after=lambda n: clock.pass_(1), length=3)
    assert set(works) == {None}
