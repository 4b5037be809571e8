"""A diagnosis as plain data: it prints, draws, saves and loads itself, and is a notebook's HTML."""

import json
import sys

import pytest
import torch

import throughtime as tt
from tests.diagnosis.nets import Net, mse, planted
from throughtime.diagnosis import Finding, Horizons, Measured, Where
from throughtime.diagnosis.conclusion import CASES
from throughtime.errors import CheckpointError
from throughtime.flow import Horizon


@pytest.fixture(scope="module")
def sick():
    torch.manual_seed(0)
    x = torch.randn(30, 48, 1)
    return tt.diagnose(planted(0.5), (x, torch.roll(x, 9, 0)), mse, optimiser=0.1, use=True)


def test_it_prints_the_point_without_a_browser(sick):
    text = str(sick)
    lines = text.splitlines()
    assert lines[0].startswith("[vanishes] Wrong weights, not missing dependency: the data hold a dependency 9 steps")
    assert max(map(len, lines)) <= 100
    gradient, data = (next(v for v in lines if v.startswith(f"{name:<10}|")) for name in ("gradient", "data"))
    assert len(gradient) == len(data)
    assert gradient[11] == "█" and gradient[11 + 25] == " ", "the gradient fades from lag 0 on"
    assert data[11 + 9] == "█" and data[11:20].strip() == "", "the data ask for lag 9 and for no nearer one"
    assert text.index("Do: cure the network") < text.index("note     ")


def test_narrow_terminals(sick):
    assert max(map(len, sick.text(60).splitlines())) <= 60


def test_findings_come_by_importance(sick):
    order = [("error", "warning", "note").index(f.severity) for f in sick.findings]
    assert order == sorted(order) and sick.findings[0].code == "horizons: vanishes"
    assert all(f.means for f in sick.findings) and all(f.do for f in sick.worries)
    assert sick.has("contracts") and not sick.has("explodes")


def test_it_comes_back_from_a_file(sick, tmp_path):
    path = sick.save(tmp_path / "d.safetensors")
    again = tt.load_diagnosis(path)
    assert str(again) == str(sick) and again.findings == sick.findings and again.horizons == sick.horizons
    assert again.data == sick.data and again.use == sick.use and again.updates == sick.updates
    assert torch.equal(again.measured[0].profile, sick.measured[0].profile)
    assert again.measured[0].lyapunov.exponents.equal(sick.measured[0].lyapunov.exponents)
    line = json.dumps(sick.to_dict())
    assert str(tt.Diagnosis.from_dict(json.loads(line))) == str(sick)


def test_a_damaged_or_foreign_file_is_refused(sick, tmp_path):
    path = sick.save(tmp_path / "d.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="damaged"):
        tt.load_diagnosis(path)
    path.write_bytes(b"hello")
    with pytest.raises(CheckpointError):
        tt.load_diagnosis(path)
    with pytest.raises(CheckpointError, match="cannot read"):
        tt.load_diagnosis(tmp_path / "none")
    sick.findings[0].save(path)
    with pytest.raises(CheckpointError, match="holds a Finding, and not a Diagnosis"):
        tt.load_diagnosis(path)


def test_html_for_notebooks(sick):
    page = sick._repr_html_()
    assert "<svg" in page and "Wrong weights" in page and "<script" not in page
    evil = tt.Diagnosis(
        "faulty", "<b>", (Finding("warning", "x", Where("<i>"), "<u>", "&"),), (), Horizons(), notes=("<s>",)
    )
    assert not any(tag in evil._repr_html_() for tag in ("<u>", "<s>", "<i>&", "<b><b>"))


def test_a_plot_without_matplotlib_says_what_to_install(sick, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(tt.ThroughtimeError, match="pip install matplotlib"):
        sick.plot()


def test_healthy_is_more_than_a_case():
    warning = Finding("warning", "stalled", Where(), "a", "b", "c")
    note = Finding("note", "contracts", Where(), "a", "b")
    assert tt.Diagnosis("healthy", "", (note,), (), Horizons()).healthy
    assert not tt.Diagnosis("no dependency", "", (warning,), (), Horizons()).healthy
    assert not tt.Diagnosis("unknown", "", (), (), Horizons()).healthy


def test_every_case_is_explained(sick):
    assert sick.case in CASES
    assert {"vanishes", "explodes", "broken", "healthy", "no dependency", "no past", "window"} <= set(CASES)


def test_what_was_not_measured_is_drawn_as_nothing():
    m = Measured(Where("rnn", 0, False), "LSTM", 5, 2, 3, broken="its input is NaN")
    text = str(tt.Diagnosis("broken", "Broken.", (), (m,), Horizons(gradient=Horizon(3, False))))
    assert "its input is NaN" in text and "|" not in text


def test_gradients_that_begin_later_than_lag_0():
    """An output made from the old state: the first lag has no gradient."""

    class Late(Net):
        def forward(self, x):
            return super().forward(torch.cat([torch.zeros_like(x[:1]), x[:-1]]))

    x = torch.randn(12, 24, 1)
    d = tt.diagnose(Late(), (x, torch.roll(x, 3, 0)), mse)
    assert d.horizons.data.steps == 3 and "gradient  |" in str(d)
