"""How often is measured, and how much: by a clock that only the test moves."""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

import throughtime as tt
from tests.diagnosis.watched import Net, Step, Ticks, stepwise, train
from throughtime.diagnosis.budget import Budget
from throughtime.diagnosis.observe import WORK, planned
from throughtime.diagnosis.watch_looks import GROWTH, SIZES, START, Looks
from throughtime.diagnosis.watch_pace import CATCHING, LATER, Pace
from throughtime.diagnosis.watch_step import Measuring, Pending


@dataclass
class Machine:
    """How long things take, in seconds: to catch a step, and to measure one; what is done once only comes on top."""

    catch: float = 0.1
    fixed: float = 0.05
    whole: float = 2.0
    once: float = 0.0
    estimates: bool = True  # whether there is always more that could be measured
    clock: Ticks | None = None

    def look(self, work: float) -> float:
        once, self.once = self.once, 0.0
        return once + self.fixed + (self.whole - self.fixed) * min(1.0, work / WORK)


@pytest.fixture
def on(monkeypatch):
    """Makes the watch's measurements last as on such a machine; gives the clock and the work that each was given."""

    def set_up(machine):
        clock, works, look, close = Ticks(), [], Pending.look, Measuring.close

        def timed_look(self, turn, work=None):
            works.append(work)
            clock.pass_(machine.look(work))
            return look(self, turn, work)

        def timed_close(self, failed):
            clock.pass_(machine.catch)
            return close(self, failed)

        monkeypatch.setattr(Pending, "look", timed_look)
        monkeypatch.setattr(Measuring, "close", timed_close)
        if machine.estimates:
            monkeypatch.setattr(Pending, "estimated", property(lambda self: True))
            monkeypatch.setattr(Pending, "grows", lambda self, work, more: True)
        return clock, works

    return set_up


def watch(clock, share, steps, each=1.0):
    """A training of so many steps, each so long; a short loop, for there are many steps."""
    model, x = Net(layers=1), torch.randn(3, 1, 3)
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    with tt.watch(model, share, clock=clock) as w:
        for _ in range(steps):
            optimiser.zero_grad()
            model(x).square().mean().backward()
            optimiser.step()
            clock.pass_(each)
    return w


# --- what fits ------------------------------------------------------------------------------------------------------


def test_what_was_spent_and_what_is_left():
    clock = Ticks()
    budget = Budget(0.02, clock)
    assert budget.cost == 0 and budget.room == 0 and budget.limited
    budget.begin()
    clock.pass_(1)
    assert budget.watching == 1
    budget.end()
    clock.pass_(100)
    assert budget.room == pytest.approx(1) and budget.cost == pytest.approx(0.01)
    assert budget.wait(0.5) < 0 and budget.wait(3) == pytest.approx(100)
    clock.pass_(100)
    assert budget.wait(3) == pytest.approx(0)
    budget.stop()
    budget.begin()
    clock.pass_(1000)
    budget.end()
    assert budget.elapsed == pytest.approx(201) and budget.cost == pytest.approx(1001 / 200)
    assert math.isinf(Budget(0, clock).wait(1)) and not Budget(0, clock).limited
    assert Budget(math.inf, clock).wait(1) == 0 and math.isinf(Budget(math.inf, clock).room)


def test_when_a_step_is_caught_and_when_measured():
    clock = Ticks()
    pace = Pace(Budget(0.02, clock))
    assert pace.to_catch == 0 and pace.to_measure == pytest.approx(START / 0.02), "the first is caught at once"
    pace.budget.spend(0.05)
    pace.caught(0.05)
    assert math.isinf(pace.to_measure) and pace.to_catch == pytest.approx(0.05 / 0.02 / CATCHING)
    clock.pass_(20.05)
    assert pace.to_catch < 0
    for seconds in (1.0, 3.0):
        pace.looks._times[-1], pace.measured = [seconds], pace.measured + 1
    # 0.05 s were spent; another 0.05, the measurement's three seconds, and as many for the last one.
    assert pace.to_measure == pytest.approx((0.05 + 0.05 + 6) / 0.02 - 20)
    assert pace.to_catch == pytest.approx((0.05 + 0.05 + 3) / 0.02 - 20), "what is kept for the last one is not touched"
    clock.pass_(1000)
    pace.caught(0.1, to_measure=True)
    clock.pass_(1)
    assert pace.to_catch == pytest.approx(1020 * (LATER - 1) - 1)


def test_the_size_that_fits_by_the_times_that_were_measured(on):
    machine = Machine(fixed=1.0, whole=10.0, once=5.0)
    clock, works = on(machine)
    looks = Looks(clock)
    step = caught(Net(layers=1))
    assert not looks.any and looks.expected() == 0
    looks.look(step, 0, 100.0, nullcontext())
    assert works == list(SIZES) and looks.any
    assert looks.expected(0) == pytest.approx(5 + machine.look(SIZES[0])) and looks.expected() == 10
    works.clear()
    looks.look(step, 1, 9.9, nullcontext())  # the whole does not fit; the middle size is known to
    assert works == [SIZES[1]]
    works.clear()
    looks.look(step, 2, 0.1, nullcontext())  # nothing does: the smallest is made; its first, cold time is forgotten
    assert works == [SIZES[0]] and looks.expected(0) == pytest.approx(machine.look(SIZES[0]))


def test_a_larger_size_is_tried_only_where_it_must_fit(on):
    machine = Machine(fixed=1.0, whole=10.0)
    clock, works = on(machine)
    looks = Looks(clock)
    first = machine.look(SIZES[0])
    looks.look(caught(Net(layers=1)), 0, first * (1 + GROWTH) - 0.01, nullcontext())
    assert works == [SIZES[0]] and looks.expected() == pytest.approx(first * GROWTH**2)


def test_what_is_whole_in_the_smallest_size_has_no_larger_one(on):
    clock, works = on(Machine(estimates=False))
    looks = Looks(clock)
    looks.look(caught(Net(layers=1)), 0, 100.0, nullcontext())
    assert works == [SIZES[0]] and looks.expected() == looks.expected(0)


def caught(model, loss_of=lambda m, x: m(x).square().mean(), length=40) -> Pending:
    measuring = Measuring(model, Ticks())
    loss_of(model, torch.randn(length, 4, 3)).backward()
    return Pending(measuring.close(False), model, None, 1)


def test_what_will_be_followed_is_told_beforehand():
    step = caught(Net(layers=2))
    (stack,) = step.stacks()
    weights = 24 * (3 + 6) + 24 * (6 + 6)
    whole, least = planned(stack, WORK), planned(stack, 1.0)
    assert whole == (4, 40, 40 * 20 * 4 * weights, False) and least == (1, 16, 16 * 20 * weights, False)
    assert step.grows(1.0, WORK) and not step.grows(WORK, 2 * WORK) and not step.grows(1.0, 2.0)
    assert Looks.guess(step, 1.0) >= START
    step.look(0, 1.0)
    assert step.recurrences[0].estimated == "16 of 40 loss steps and 1 of 4 sequences"
    own = caught(Step(), stepwise)
    assert [planned(s, 1.0).own for s in own.stacks()] == [True] and Looks.guess(own, 1.0) > 16
    assert planned(own.stacks()[0], 1.0).rows == 16 and planned(own.stacks()[0], WORK).rows == 40


# --- whole trainings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_the_share_is_kept_and_used(on, share):
    machine = Machine()
    clock, _ = on(machine)
    w, steps = watch(clock, share, 300), 300
    assert w.budget.training == pytest.approx(steps) and w.cost == pytest.approx(w.budget.watching / steps)
    # All in all the share is kept, what is measured at the end included, and all but used up.
    assert w.history[-1].cost == pytest.approx(w.cost, rel=0.1)
    assert share - 2.5 * (machine.whole + machine.catch) / steps < w.cost <= share and not w.notes
    gaps = [b.step - a.step for a, b in pairwise(w.history[:-1])]
    apart = machine.whole / share
    assert len(gaps) > 2 and all(abs(gap - apart) <= 0.5 * apart + 2 for gap in gaps[2:]), gaps


# The case that once took 3.4 % of a budget of 2 %: 643 steps of 36 ms, and a last measurement that took longer than the
# rate of the first one said, because that had been a cold one and the second a larger one; and others like it.
MACHINES = {
    "cold": (643, 0.036, Machine(catch=0.005, fixed=0.01, whole=0.05, once=0.1)),
    "slow at the end": (643, 0.036, Machine(catch=0.005, fixed=0.002, whole=0.7, once=0.1)),
    "all fixed": (643, 0.036, Machine(catch=0.005, fixed=0.15, whole=0.16)),
    "small steps": (1000, 0.008, Machine(catch=0.012, fixed=0.03, whole=0.03)),
    "costly to catch": (500, 0.024, Machine(catch=0.07, fixed=0.02, whole=0.04)),
    "large": (40, 10.0, Machine(catch=0.1, fixed=0.1, whole=20.0)),
}


@pytest.mark.parametrize("case", MACHINES)
def test_the_budget_is_kept_whatever_takes_long(on, case):
    steps, each, machine = MACHINES[case]
    clock, works = on(machine)
    w = watch(clock, 0.02, steps, each)
    assert 0 < w.cost <= 0.02 and not w.notes, w
    assert w.history[0].step == 1 and w.history[-1].step > steps / 3 and works[0] == SIZES[0]


@pytest.mark.parametrize("steps", [1, 3, 10, 40, 90, 200])
def test_a_run_too_short_for_one_measurement_makes_one_and_says_what_it_cost(on, steps):
    machine = Machine(catch=0.05, fixed=0.25, whole=2.0)
    clock, works = on(machine)
    w = watch(clock, 0.02, steps, 0.1)
    smallest = machine.look(SIZES[0])
    if 0.02 * 0.1 * steps < machine.catch + smallest:
        assert works == [SIZES[0]] and [r.step for r in w.history] == [1] and w.cost > 0.02
        assert w.budget.watching == pytest.approx(machine.catch + smallest)
        assert w.notes == [
            f"watching took {w.budget.watching:.2g} s of {0.1 * steps:.2g} s of training, more than its budget of 2 %: "
            "one measurement is made however short the training is; one of 24 s would have room for it"
        ]
        assert w.notes[0] in str(w)
    else:
        assert w.cost <= 0.02 and not w.notes


def test_the_beginning_waits_until_there_is_room_and_is_told_as_it_was(on):
    clock, _ = on(Machine(catch=0.1, fixed=0.1, whole=0.2))
    model = Net(layers=1)
    seen = []

    def after(n):
        clock.pass_(1)
        seen.append((len(w.history), w.cost))

    with tt.watch(model, 0.02, clock=clock) as w:
        _, losses = train(model, 60, after=after)
    # 0.1 s to catch it, and about 0.05 s until it is known how long it takes: that fits after some 7 s.
    measured = [n for n, (records, _) in enumerate(seen) if records]
    assert 5 <= measured[0] <= 20 and w.history[0].step == 1 and w.history[0].loss == losses[0]
    assert w.history[0].updates and w.history[-1].updates and w.cost <= 0.02
    assert all(cost <= 0.02 for n, (_, cost) in enumerate(seen) if n > measured[0] + 20)
    assert w.history[-1].step > 20 and w.diagnosis().updates.measured


def test_the_first_and_the_last_are_both_measured_at_the_end_where_they_fit(on, monkeypatch):
    monkeypatch.setattr("throughtime.diagnosis.watch_looks.START", 1e6)  # it seems too much until training is over
    clock, _ = on(Machine(catch=0.01, fixed=0.05, whole=0.1))
    w = watch(clock, 0.02, 12)
    assert [r.step for r in w.history] == [1, w.steps] or 1 == w.history[0].step < w.history[1].step
    assert len(w.history) == 2 and w.cost <= 0.02


def test_zero_measures_once_and_infinity_always(on):
    clock, works = on(Machine())
    w = watch(clock, 0.0, 5)
    assert [r.step for r in w.history] == [1] and not w.notes
    w = watch(Ticks(0.001), 1e300, 5)
    assert [r.step for r in w.history] == [1, 2, 3, 4, 5], "nor has a limit that nothing comes up to"
    works.clear()
    w = watch(clock, math.inf, 5)
    assert [r.step for r in w.history] == [1, 2, 3, 4, 5] and not w.notes
    assert set(works) == {WORK}, "without a limit all is measured whole"


def test_steps_in_which_nothing_is_done_are_counted_and_what_they_cost(monkeypatch):
    clock = Ticks(0.001)  # to look at the clock takes a millisecond
    model = Net(layers=1)
    w, _ = train(model, 200, watching=tt.watch(model, 0, clock=clock), length=3)
    assert w.steps == 200
    asleep = Ticks(0.001)
    model = Net(layers=1)
    with tt.watch(model, 0, clock=asleep) as w:
        train(model, 8, length=3)
        before = w.budget.watching
        train(model, 160, length=3)
        # Each step that was timed counts for sixteen: two spans of one look at the clock each.
        assert w.budget.watching - before == pytest.approx(0.002 * 160)
    assert w.steps == 168


def test_a_pass_that_does_not_reach_the_model_is_no_step_asleep_either():
    model, other = Net(layers=1), torch.nn.Linear(2, 1)
    with tt.watch(model, 0) as w:
        for n in range(40):
            if n % 3 == 2:
                other(torch.ones(1, 2)).sum().backward()
            else:
                if n % 2:
                    model.zero_grad()
                model(torch.randn(3, 2, 3)).square().mean().backward()
    assert w.steps == 40 - 40 // 3
