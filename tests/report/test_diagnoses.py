"""A diagnosis, and what was prescribed for it, as a page: what was measured stands there, as text and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import throughtime as tt
from throughtime.errors import ReportError, ShapeError
from throughtime.flow import gate_statistics, gradient_flow
from throughtime.flow.measure import recurrences
from throughtime.nn import LSTM
from throughtime.report import GatesView, ReadingView, TableView, diagnosis_page, render


class Net(nn.Module):
    def __init__(self, kind: str = "LSTM") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enc = getattr(nn, kind)(4, 8, batch_first=True)
        self.out = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.enc(F.one_hot(x, 4).float())[0])


def loss(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out.flatten(0, 1), y.flatten())


@pytest.fixture(scope="module")
def found() -> tt.Diagnosis:
    g = torch.Generator().manual_seed(1)
    x = torch.randint(0, 4, (24, 30), generator=g)
    net = Net()
    return tt.diagnose(net, (x, x.roll(12, 1)), loss, optimiser=torch.optim.SGD(net.parameters(), 0.1), batch_axis=0)


def data_of(text: str) -> Any:
    return json.loads(re.findall(r'id="report-data">(.*?)</script>', text, re.S)[0])


def test_what_was_found_stands_on_the_page(found: tt.Diagnosis, tmp_path: Path) -> None:
    text = found.report(tmp_path / "x.html").read_text("utf-8")
    assert (tmp_path / "x.html").is_file()
    for finding in found.findings:
        assert finding.what.replace("'", "&#x27;").replace("<", "&lt;").replace(">", "&gt;") in text
    data = data_of(text)
    [model] = data["models"]
    [measured] = found.measured
    assert model["name"] == str(measured.where) and measured.profile is not None
    assert model["profile"]["z"] == pytest.approx(measured.profile.tolist(), rel=1e-5)
    assert found.horizons.data is not None and data["dataHorizon"]["steps"] == found.horizons.data.steps == 12
    assert found.data is not None and data["dependence"]["unit"] == found.data.unit
    assert data["dependence"]["lags"] == list(found.data.lags)


def test_the_gates_are_those_that_were_measured(found: tt.Diagnosis) -> None:
    [model] = data_of(render(diagnosis_page(found)))["models"]
    gates = found.measured[0].gates
    assert gates is not None and set(model["gates"]["histograms"]) == {"i", "f", "o"}
    assert model["gates"]["histograms"]["f"] == pytest.approx(gates["f"].histogram, rel=1e-5)
    assert torch.tensor(model["gates"]["units"]).sum(1).allclose(torch.ones(8), atol=5e-3)
    assert model["gates"]["regimes"][0] == "erase 000" and model["gates"]["regimes"][-1] == "accumulate 111"


def test_a_map_can_be_given(found: tt.Diagnosis) -> None:
    layer = LSTM(4, 8).double()
    flow = gradient_flow(layer, torch.randn(10, 2, 4, dtype=torch.float64), lambda y: y.sum())
    page = diagnosis_page(found, maps={str(found.measured[0].where): flow}, title="<b>")
    text = render(page)
    assert data_of(text)["models"][0]["maps"]["z"]["size"] == 10 and "&lt;b&gt;" in text


def test_a_model_without_a_gradient_has_a_page_too() -> None:
    net = Net("RNN")
    with torch.no_grad():
        net.enc.weight_hh_l0.fill_(float("nan"))
    x = torch.randint(0, 4, (4, 6))
    broken = tt.diagnose(net, (x, x), loss, batch_axis=0)
    text = render(diagnosis_page(broken))
    assert "NaN" in text and data_of(text)["models"][0]["profile"] == {}


def test_remedies_before_and_after(found: tt.Diagnosis) -> None:
    from throughtime.cures.prescribe_remedies import Candidate
    from throughtime.cures.prescribe_result import Outcome, Prescription

    nothing = Outcome(Candidate(()), ())
    given = Prescription("Change <nothing>.", found, nothing, (), steps=7, seeds=(0, 1, 2))
    text = render(diagnosis_page(given))
    assert "Remedies, before and after" in text and "3 seeds, 7 steps each" in text
    assert "Change &lt;nothing&gt;." in text


def test_a_page_that_cannot_be_written(found: tt.Diagnosis, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="no folder"):
        found.report(tmp_path / "none" / "x.html")


def test_hostile_words_are_shown_as_text(found: tt.Diagnosis) -> None:
    from dataclasses import replace

    bad = '</script><img src=x onerror="alert(1)">\u2028\u202e\x00\ud800'
    page = diagnosis_page(found)
    reading = ReadingView([bad, "\n", bad], [1.0, 2.0], [[1.0, 0.0], [0.5, 1.0]], gates={bad: [0.1, 0.2]})
    gates = GatesView({bad: [0.5, 0.5]}, [bad], [[1.0]])
    model = replace(page.models[0], reading=reading, gates=gates)
    page = replace(
        page, models=[model], asks=bad, unit=bad, settings={bad: bad}, tables=[TableView(bad, [bad], [[bad]], bad, bad)]
    )
    text = render(page)
    assert "<img" not in text and text.count("</script>") == 2
    text.encode("utf-8")
    assert "\u2028" not in text and "\u202e" not in text and "\x00" not in text


@pytest.mark.parametrize(
    "make",
    [
        lambda: ReadingView("abc", [1.0], [[1.0]]),
        lambda: ReadingView("ab", [1.0], [[1.0]], kept=[[1.0, 0.0], [1.0, 1.0]]),
        lambda: ReadingView("ab", [1.0], [[1.0]], gates={"i": [1.0, 2.0]}),
        lambda: GatesView({}, ["a", "b"], [[1.0]]),
    ],
)
def test_views_whose_parts_do_not_fit(make: Any) -> None:
    with pytest.raises(ShapeError):
        make()


def test_gate_statistics_of_our_own_layer_fit_the_view() -> None:
    layer = LSTM(3, 5).double()
    r = recurrences(layer, torch.randn(7, 2, 3, dtype=torch.float64))[0][0]
    found = gate_statistics(r)
    assert len(GatesView({g.name: g.histogram for g in found.gates}).histograms["i"]) == 20


@pytest.fixture(scope="module")
def text_model() -> tt.Diagnosis:
    torch.manual_seed(3)
    x = torch.randint(0, 4, (9, 41))
    net = Net("GRU")
    norms = [1.0] * 30 + [float("nan"), 50.0]
    return tt.diagnose(net, (x[:, :-1], x[:, 1:]), loss, norms=norms, clip=2.0, batch_axis=0)


def test_the_map_and_the_shares_are_those_of_the_first_sequence(text_model: tt.Diagnosis) -> None:
    torch.manual_seed(3)
    x = torch.randint(0, 4, (9, 41))
    net = Net("GRU")
    with tt.capture(net) as captured:
        (loss(net(x[:1, :-1]), x[:1, 1:]) / 9).backward()
    flow, shares = captured.flow(), captured.shares(norms=False)
    [m] = text_model.measured
    assert m.pictures is not None and (m.pictures.first, m.pictures.stride) == (0, 1)
    for name, sizes in m.pictures.maps.items():
        torch.testing.assert_close(sizes, flow.maps[name].float(), rtol=1e-4, atol=1e-9)
    for name, share in m.pictures.shares.items():
        torch.testing.assert_close(share, shares[name].by_lag.contribution.float(), rtol=1e-3, atol=1e-6)
    assert set(m.pictures.shares) == {"weight_ih", "weight_hh", "bias_ih"}
    U = net.enc.weight_hh_l0.detach().double()[:8]
    found = torch.view_as_complex(m.pictures.eigenvalues["U"]).abs().sort().values
    torch.testing.assert_close(found, torch.linalg.eigvals(U).abs().sort().values.float(), rtol=1e-4, atol=1e-5)
    assert m.pictures.eigenvalues["J"].shape == (8, 2)


def test_a_plain_diagnosis_has_every_figure(text_model: tt.Diagnosis, tmp_path: Path) -> None:
    text = text_model.report(tmp_path / "x.html", symbols="ab\u2028<").read_text("utf-8")
    for figure in ("horizons", "lags", "map", "reading", "gates", "shares", "eigenvalues", "norms"):
        assert f'data-figure="{figure}"' in text, figure
    [model] = data_of(text)["models"]
    assert model["maps"]["z"]["size"] == 40 and model["clip"] == 2 and model["norms"][-1] == [31, 50]
    assert model["norms"][-2] == [30, "nan"]
    assert text_model.read is not None and len(model["reading"]["symbols"]) == 41
    assert model["reading"]["symbols"][0] == "ab\u2028<"[int(text_model.read[0])] or "\u2028" not in text
    assert model["reading"]["bits"] == [] and "\u2028" not in text
    assert 'data-figure="reading"' not in text_model.report(tmp_path / "y.html").read_text("utf-8")


def test_symbols_that_do_not_fit_are_told(text_model: tt.Diagnosis, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="a text for each number"):
        text_model.report(tmp_path / "x.html", symbols="ab")
    assert text_model.report(tmp_path / "x.html", symbols=lambda n: f"w{n} ").is_file()


def test_it_is_saved_small_and_read_again(text_model: tt.Diagnosis, tmp_path: Path) -> None:
    path = text_model.save(tmp_path / "d.safetensors")
    assert path.stat().st_size < 120_000
    again = tt.load_diagnosis(path)
    assert render(diagnosis_page(again, symbols="abcd")) == render(diagnosis_page(text_model, symbols="abcd"))


def test_a_long_sequence_has_some_of_its_steps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Net("RNN"), torch.randint(0, 4, (9, 250))
    found = tt.diagnose(net, (x, x.roll(1, 1)), loss, batch_axis=0)
    pictures = found.measured[0].pictures
    assert pictures is not None and pictures.stride == 3 and len(pictures.maps["z"]) <= 96
    shown = data_of(render(diagnosis_page(found)))["models"][0]["maps"]["z"]
    assert shown["stride"] == 3 and shown["first"] == pictures.first == 249 % 3
    assert shown["first"] + (shown["size"] - 1) * 3 == 249


def test_a_loss_at_the_end_alone_has_no_map_but_shares() -> None:
    torch.manual_seed(0)
    net, x = Net("RNN"), torch.randint(0, 4, (9, 20))
    found = tt.diagnose(net, (x, x[:, 3]), lambda out, y: F.cross_entropy(out[:, -1], y), batch_axis=0)
    pictures = found.measured[0].pictures
    assert pictures is not None and pictures.maps == {} and pictures.shares["weight_hh"].sum() == pytest.approx(1)
    text = render(diagnosis_page(found))
    assert 'data-figure="map"' not in text and 'data-figure="shares"' in text


@pytest.mark.parametrize("options", [{"bidirectional": True}, {"num_layers": 2}])
def test_pictures_of_every_layer_and_direction(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net, x = Net("LSTM"), torch.randint(0, 4, (9, 20))
    net.enc = nn.LSTM(4, 8, batch_first=True, **options)
    net.out = nn.Linear(16 if "bidirectional" in options else 8, 4)
    found = tt.diagnose(net, (x, x.roll(2, 1)), loss, batch_axis=0)
    assert len(found.measured) == 2
    for m in found.measured:
        assert m.pictures is not None and m.pictures.shares["weight_hh"].sum() == pytest.approx(1, abs=1e-5)
    assert len(data_of(render(diagnosis_page(found)))["models"]) == 2


def test_no_dependency_is_not_the_same_as_not_measured(text_model: tt.Diagnosis) -> None:
    from dataclasses import replace

    page = diagnosis_page(text_model)
    assert text_model.horizons.data is not None and text_model.horizons.data.steps < 0
    assert "no dependence beyond chance at any lag measured" in render(page)
    assert "data horizon: not measured" in render(replace(page, dependence=None))
