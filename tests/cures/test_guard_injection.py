"""Fault injection: a fast subset of benchmarks/fault_injection.py; every plant is named rightly or said not located."""

from collections import Counter

import pytest
from benchmarks.fault_injection import WHERE, healthy, judge, plant, plants, table
from benchmarks.fault_kinds import KINDS, WRITTEN_OUT
from benchmarks.fault_plants import Truth

from throughtime.cures import Incident, flight

BAD = {"wrong", "swallowed", "crashed"}
pytestmark = [
    pytest.mark.filterwarnings("ignore:dropout"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]


@pytest.fixture(autouse=True)
def silent(caplog):
    caplog.set_level("CRITICAL", "throughtime.guard")


@pytest.mark.parametrize("where", WHERE)
def test_plants_of_every_sort(where):
    first = WHERE.index(where)
    kinds = [kind for i, kind in enumerate(KINDS) if i % 6 == first % 6] if where != "explosion" else WRITTEN_OUT
    outcomes = [plant(kind, where, 1000 * first + i) for i, kind in enumerate(kinds)]
    assert not [(o.kind, o.verdict, o.detail) for o in outcomes if o.verdict in BAD]
    assert Counter(o.verdict for o in outcomes)["right"] >= len(outcomes) - 1


def test_healthy_runs_are_bit_for_bit_those_without_the_guard():
    assert [kind for i, kind in enumerate(KINDS) if i % 6 == 0 and not healthy(kind, i)] == []


@pytest.mark.slow
def test_healthy_runs_of_every_kind():
    assert [kind for i, kind in enumerate(KINDS) if not healthy(kind, i)] == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_two_hundred_plants(seed):
    outcomes = [plant(*p) for p in plants(200, seed)]
    assert not [(o.kind, o.where, o.verdict, o.detail) for o in outcomes if o.verdict in BAD], table(outcomes)


def test_the_plants_are_spread_evenly():
    pairs = len(KINDS) * (len(WHERE) - 1) + len(WRITTEN_OUT)
    counts = Counter((kind, where) for kind, where, _ in plants(pairs * 2, 0))
    assert len(counts) == pairs and set(counts.values()) == {2}


def test_the_judge_is_strict():
    truth = Truth("bad input", "forward", "core.layer", "input", 3, 1)
    record = flight.FlightRecord(4, "bad input", "forward", "core.layer", t=3, part="input", sample=1)

    def verdict(record, at=4, kind="RNN relu", more=()):
        return judge(kind, truth, 4, [Incident(at, "", "skip", record), *more])[0]

    assert verdict(record) == "right"
    assert judge("RNN relu", truth, 4, [])[0] == "swallowed"
    assert verdict(record, at=5) == "wrong"
    assert verdict(record, more=[Incident(5, "", "skip", record)]) == "wrong"
    for name, value in [("t", 2), ("t", None), ("sample", 0), ("module", "head"), ("cause", "bad gradient")]:
        assert verdict(flight.FlightRecord(**{**vars(record), name: value})) == "wrong"
    assert verdict(flight.FlightRecord(4, flight.UNKNOWN)) == "not located"
    unknown_step = flight.FlightRecord(**{**vars(record), "t": None})
    assert verdict(unknown_step, kind="own equations") == "right"
