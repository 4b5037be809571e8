"""Every result class, whichever room it is of: it prints, is a notebook's HTML, is saved and read again, and draws."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterator

import pytest
import torch

import throughtime
from tests.flow.test_results import MAKE as FLOW
from tests.flow.test_results import PLAIN as FLOW_PLAIN
from tests.flow.test_results import assert_same
from throughtime import cures
from throughtime.cures import flight
from throughtime.cures.prescribe_remedies import Candidate
from throughtime.diagnosis.dependence import Dependence
from throughtime.diagnosis.finding import Finding, Where
from throughtime.diagnosis.horizons import Horizons
from throughtime.diagnosis.measured import Measured
from throughtime.diagnosis.pictures import Pictures
from throughtime.diagnosis.result import Diagnosis
from throughtime.diagnosis.use import Use
from throughtime.flow import Horizon, Update
from throughtime.plain import Plain
from throughtime.train.drifting import Drift, DriftOf

ROOMS = ("flow", "diagnosis", "cures", "train")


def classes(of: type = Plain) -> Iterator[type[Plain]]:
    for cls in of.__subclasses__():
        if cls.__module__.startswith("throughtime.") and not getattr(cls, "__abstractmethods__", None):
            yield cls
        yield from classes(cls)


for room in ROOMS:
    package = importlib.import_module(f"throughtime.{room}")
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(found.name)
ALL = {c.__name__: c for c in classes() if c.__module__.split(".")[1] in ROOMS}

WHERE = Where("rnn", 0, False, "weight_hh_l0")
PROFILE = torch.tensor([1.0, 0.5, 0.001], dtype=torch.float64)
NEAR, FAR = Horizon(1, False), Horizon(2, True)


def drift_of() -> DriftOf:
    return DriftOf("bits", torch.tensor([1.0, 2.0]), torch.tensor([1.5, 4.0]), torch.tensor([0.1, 0.2]))


def measured() -> Measured:
    return Measured(WHERE, "rnn", 3, 2, 4, {"z": PROFILE, "h": PROFILE}, (NEAR, FAR), loss_steps=3)


def horizons() -> Horizons:
    return Horizons(FAR, NEAR, NEAR, (NEAR, FAR), (NEAR, NEAR), None, window=9)


def trial() -> cures.Trial:
    return cures.Trial("nothing", 0, 2.0, 1.0, (NEAR, FAR), (2.0, 1.5, 1.0), (1.0, 1.0, 0.5), seconds=0.1)


def outcome() -> cures.Outcome:
    return cures.Outcome(Candidate(()), (trial(),))


def diagnosis() -> Diagnosis:
    finding = Finding("warning", "vanishes", WHERE, "the gradient vanishes", "it does", "cure it", 1.0, "steps")
    return Diagnosis("vanishes", "The gradient vanishes.", (finding,), (measured(),), horizons())


def prescription() -> cures.Prescription:
    return cures.Prescription("Nothing helps.", diagnosis(), outcome(), (), 3, (0,))


def clip_advice() -> cures.ClipAdvice:
    return cures.advise_clip([1.0 + 0.01 * (n % 7) for n in range(40)] + [90.0])


def cliff() -> cures.Cliff:
    return cures.Cliff(
        torch.linspace(-0.5, 1.5, 5).double(), torch.tensor([1.0, 0.5, 0.2, 3.0, 9.0]).double(), 1.0, 2.0
    )


DRAWN = {
    **{type(make()).__name__: make for name, make in FLOW.items() if "," not in name and " " not in name},
    "RecurrentMatrix": FLOW_PLAIN["RecurrentMatrix"],
    "GateStatistics": lambda: FLOW["GateResult"]().gates[0],
    "GateRegimes": lambda: FLOW["GateResult"]().regimes[0],
    "ParameterShares": lambda: FLOW["Shares, estimated"]()["weight_hh"],
    "Parts": lambda: FLOW["Shares, estimated"]()["weight_hh"].by_lag,
    "Dependence": lambda: Dependence((0, 1, 2), (0.9, 0.1, 0.0), 0.05, interval=(NEAR, FAR)),
    "Use": lambda: Use((0, 1, 2), (0.9, 0.1, 0.0), (0.1, 0.01, 0.01), 1.5, 0.001, 3.0),
    "Horizons": horizons,
    "Measured": measured,
    "Pictures": lambda: Pictures({"z": torch.eye(3)}, shares={"weight_hh": torch.tensor([0.9, 0.1])}),
    "Diagnosis": diagnosis,
    "Drift": lambda: Drift("run", "step-9", 2, 4, 8, 0, (1, 3), (2, 8), {"entropy": drift_of()}),
    "Cliff": cliff,
    "ClipAdvice": clip_advice,
    "Trial": trial,
    "Outcome": outcome,
    "Prescription": prescription,
}
# A few words or numbers, of which a picture would say no more; what has many of them draws them.
TOLD = {
    "Update": lambda: Update("weight_hh", 0.1, 2.0),
    "DriftOf": drift_of,
    "Where": lambda: WHERE,
    "Finding": lambda: diagnosis().findings[0],
    "SpikeSteps": lambda: cures.SpikeSteps(3, "rnn", (1, 2), (0.7, 0.3), (9,), (1.0,)),
    "Incident": lambda: cures.Incident(7, "the loss is NaN", "skip", cliff=cliff()),
    "GuardCost": lambda: cures.GuardCost(10, 1.0, 0.01, 0.02, 0.0, 2, 5),
    "FlightRecord": lambda: cures.FlightRecord(7, flight.OVERFLOW, "forward", "rnn", 0, t=3),
    "Change": lambda: cures.Change("rnn", "b_f = 1"),
    "Changes": lambda: cures.Changes("forget-gate bias", (cures.Change("rnn", "b_f = 1"),)),
    "ClipStep": lambda: cures.ClipStep(2.0, 1.0, 1.0, "clipped"),
    "Candidate": lambda: Candidate((cures.Clip(1.0),), "spikes"),
    "Clip": lambda: cures.Clip(1.0),
}
MAKE = {**DRAWN, **TOLD}


def remedies() -> set[str]:
    """What is tried, not what was found: settings, which print and save themselves like the rest."""
    return {name for name, cls in ALL.items() if issubclass(cls, cures.Remedy)}


def test_no_result_class_is_forgotten() -> None:
    """A new class of results stands in one of the two tables above: it draws itself, or has nothing to draw."""
    assert set(ALL) - remedies() <= set(MAKE), sorted(set(ALL) - remedies() - set(MAKE))
    assert set(MAKE) <= set(ALL) and not set(DRAWN) & set(TOLD)
    assert {n for n, c in ALL.items() if hasattr(c, "plot")} == set(DRAWN)


@pytest.mark.parametrize("name", MAKE)
def test_it_is_what_it_was_from_a_file_and_a_line_and_in_a_notebook(name: str, tmp_path: object) -> None:
    result = MAKE[name]()
    assert type(result) is ALL[name]
    for again in (
        ALL[name].load(result.save(f"{tmp_path}/result")),
        ALL[name].from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False))),
    ):
        assert_same(again, result)
        assert str(again) == str(result)
    page = result._repr_html_()
    assert len(page) > 20 and "<script" not in page and "object at 0x" not in page + str(result)


@pytest.mark.parametrize("name", DRAWN)
def test_it_draws_into_given_axes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="plots are an optional extra")
    matplotlib.use("agg")
    from matplotlib import pyplot

    result = MAKE[name]()
    figure, ax = pyplot.subplots()
    assert result.plot(ax) is ax and ax.get_xlabel()
    assert ax.lines or ax.patches or ax.images
    figure.canvas.draw()
    assert result.plot() is not ax
    pyplot.close("all")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(throughtime.ThroughtimeError, match="pip install matplotlib"):
        result.plot()


def test_of_several_statistics_one_is_drawn_by_its_name() -> None:
    with pytest.raises(throughtime.ThroughtimeError, match="there is no 'x' here; there are entropy"):
        MAKE["Drift"]().plot(of="x")
