"""Every schedule gives the same as the torch backend, whatever the rule would choose; and the rule itself."""

from dataclasses import replace

import pytest
import torch

from throughtime.engine.triton import schedule
from throughtime.engine.triton.schedule import ON_CHIP, Schedule

from .cooperate import at_once
from .problems import DEVICE, assert_same_as_torch, choose, given

INTERPRETED = DEVICE.type == "cpu"
SHARING = ["gru", "lstm-projected", "users-own"]
WAYS = {"held": (True, 1), "read anew": (False, 1), "split": (True, 2)}
SOME = [(name, way) for name in SHARING for way in WAYS if (name, way) not in zip(SHARING, WAYS, strict=True)]


@pytest.mark.parametrize("name, way", SOME)
def test_programs_that_meet_at_a_barrier(name, way, monkeypatch):
    chosen = choose(monkeypatch, "together", 2, *WAYS[way])
    with at_once(monkeypatch) as grids:
        assert_same_as_torch(given(name, 3, 3, 5, 24, lengths=True, reverse=True, clip=0.5))
    assert {s.mode for s in chosen} == {"together"} and all(s.tiles == 2 for s in chosen)
    if INTERPRETED:
        assert grids == [(1, 2), (1, 2)]


@pytest.mark.parametrize("name, way, parts", [("gru", "split", 4), ("users-own", "held", 2), ("lstm", "read anew", 2)])
def test_rows_are_multiplied_in_parts(name, way, parts, monkeypatch):
    held, split = WAYS[way]
    rule = schedule.choose

    def chosen_by_the_test(B, H, P, *rest):
        made = schedule.shared_out(rule(B, H, P, *rest), H, P, 2, "together", held, split)
        return replace(made, rows=64, parts=parts, batch=1)

    monkeypatch.setattr(schedule, "choose", chosen_by_the_test)
    with at_once(monkeypatch):
        assert_same_as_torch(given(name, 2, 50, 3, 24, lengths=True))  # the last part is not full


def test_no_thread_has_more_sums_at_a_time_than_it_has_registers_for():
    for name, weights in (("rnn", 1), ("gru", 3), ("lstm", 4), ("many", 9)):
        for B in (1, 16, 64, 128, 1000):
            for H in (256, 512, 768, 1024, 2048):
                for size in (2, 4):
                    s = by_rule(B=B, H=H, weights=weights, size=size)
                    sums = weights * (s.rows // s.parts) * max(s.H, s.P) * s.split // (s.warps * 32)
                    assert s.rows % s.parts == 0 and s.rows // s.parts >= schedule.LEAST
                    assert sums <= schedule.SUMS or s.rows // s.parts == schedule.LEAST, (name, s)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [*SHARING, "rnn", "lstm", "lstm-peephole", "lstm-1997", "gru-reset-before"])
def test_many_programs_that_meet_at_a_barrier(name, way, monkeypatch):
    choose(monkeypatch, "together", 3, *WAYS[way])
    with at_once(monkeypatch):
        for options in ({"lengths": True}, {"truncated": True, "lengths": True, "reverse": True}):
            assert_same_as_torch(given(name, 3, 17, 5, 41, **options))


@pytest.mark.parametrize("name", ["lstm"])
def test_more_tiles_of_rows_than_run_at_once(name, monkeypatch):
    monkeypatch.setattr(schedule, "choose", lambda *a: schedule._choose(*a[:7], 4, 4 * 16 * 64 * 8, True))
    with at_once(monkeypatch) as grids:
        assert_same_as_torch(given(name, 2, 65, 2, 40, lengths=True))
    if INTERPRETED:  # four at once: one tile of rows, whose units three programs share
        assert grids == [(1, 3), (1, 3)] * 2


@pytest.mark.parametrize("name, way", SOME)
def test_a_launch_for_each_part_of_a_step(name, way, monkeypatch):
    chosen = choose(monkeypatch, "stepwise", 2, *WAYS[way])
    assert_same_as_torch(given(name, 2, 3, 3, 24, lengths=True))
    assert {s.mode for s in chosen} == {"stepwise"}


@pytest.mark.parametrize("name", ["gru-reset-before", "lstm-peephole", "lstm-1997"])
def test_a_launch_for_each_part_of_a_step_under_a_rule(name, monkeypatch):
    choose(monkeypatch, "stepwise", 2)
    assert_same_as_torch(given(name, 2, 3, 3, 24, lengths=True, reverse=True, clip=0.02))
    assert_same_as_torch(given(name, 2, 3, 3, 24, reverse=True, truncated=True))


def by_rule(B=16, H=128, P=None, weights=4, size=2, exchanges=True, scans=False, room=132, chip=ON_CHIP, meets=True):
    return schedule._choose(B, H, P or H, weights, size, exchanges, scans, room, chip, meets)


def test_the_rule():
    assert by_rule(scans=True).mode == "scan"
    assert by_rule(exchanges=False).mode == "alone"
    whole = by_rule(H=100)
    assert (whole.mode, whole.H, whole.tiles, whole.held) == ("alone", 128, 1, True)
    shared = by_rule(H=129)
    assert (shared.mode, shared.held) == ("together", True)
    assert by_rule(H=129, meets=False).mode == "stepwise"
    anew = by_rule(H=4096, size=4)
    assert not anew.held and anew.tiles <= 132


@pytest.mark.parametrize("B", [1, 16, 100, 1000, 100_000])
@pytest.mark.parametrize("H", [1, 17, 64, 256, 768, 1000, 1024, 5000])
@pytest.mark.parametrize("room", [1, 30, 132])
def test_every_unit_has_a_program_and_all_that_wait_are_there(B, H, room):
    for size in (2, 4, 8):
        s = by_rule(B=B, H=H, size=size, room=room)
        assert s.tiles * s.H >= H and s.tiles * s.P >= H and s.rows * -(-B // s.rows) >= B
        assert s.depth % (schedule.LEAST * s.split) == 0
        if s.mode == "together":
            assert s.batch * s.tiles <= room
        if s.held:
            assert 4 * s.H * schedule.power_of_two(H) * size <= ON_CHIP


def test_units_and_outputs_of_two_widths():
    s = by_rule(H=1024, P=256)
    assert isinstance(s, Schedule) and s.tiles * s.P >= 256 and s.tiles * s.H >= 1024


def test_long_float32_products_are_cut():
    one = by_rule(H=128, weights=1, size=4)
    assert (one.mode, one.tiles, one.depth, one.held) == ("together", 1, schedule.PLAIN, True)
    assert by_rule(H=64, weights=1, size=4).mode == by_rule(H=128, weights=1, size=2).mode == "alone"
    assert_same_as_torch(given("rnn", 3, 17, 3, 70, lengths=True, dtype=torch.float32), 1e-5)  # 128: two parts


def test_the_rule_does_not_look_at_the_batch_alone():
    assert {by_rule(B=B, H=64).mode for B in (1, 64, 4096)} == {"alone"}
    assert {by_rule(B=B, H=768).mode for B in (1, 64, 4096)} == {"together"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="asks a GPU how many programs it runs at once")
def test_the_device_is_asked():
    assert schedule.programs_at_once(DEVICE) >= 1 and schedule.on_chip(DEVICE) >= 2**15
