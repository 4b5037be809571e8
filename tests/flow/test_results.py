"""Every result of flow is plain data: it prints, draws, is a notebook's HTML, and comes back from a file as it was."""

import dataclasses
import json
import math
import sys

import pytest
import torch

from tests.engine.problems import F64
from tests.flow.runs import of_module, ran
from throughtime import ThroughtimeError, flow, nn
from throughtime.errors import CheckpointError, FlowError
from throughtime.flow.measure import recurrences
from throughtime.flow.passed import PassedStack

T, B, D, H = 9, 2, 3, 4


def update_sizes():
    module = nn.LSTM(D, H)
    module(torch.randn(T, B, D))[0].sum().backward()
    return flow.update_sizes(module, 0.1)


def shares(**options):
    r = ran("lstm", T=T)
    return flow.shares(r, torch.randn_like(r.output), **options)


def depth():
    stack = PassedStack(recurrences(nn.LSTM(D, H, 3).double(), torch.randn(T, B, D, dtype=F64)))
    return flow.depth_profile(stack, torch.randn(T, B, H, dtype=F64))


def lag():
    module = nn.GRU(D, H)
    with flow.capture(module) as captured:
        module(torch.randn(T, 4, D))[0].square().sum().backward()
    return flow.lag_profile(captured.recurrences[0], anchors=4, samples=2)


MAKE = {
    "GradientFlow": lambda: flow.gradient_flow(nn.LSTM(D, H), torch.randn(T, B, D), lambda y: y.square().sum()),
    "Shares": shares,
    "Shares, estimated": lambda: shares(anchors=4),
    "JacobianResult": lambda: flow.state_jacobian(ran("rnn", T=T)),
    "JacobianResult of an LSTM": lambda: flow.state_jacobian(ran("lstm", T=T, lengths=[9, 2, 5])),
    "LyapunovSpectrum": lambda: flow.lyapunov_spectrum(of_module(nn.LSTM(D, H), torch.randn(60, B, D))),
    "GateResult": lambda: flow.gate_statistics(ran("lstm", T=T)),
    "MemoryStatistics": lambda: flow.memory_statistics(ran("lstm", T=T)),
    "CarouselPath": lambda: flow.carousel_path(ran("lstm", T=T)),
    "DepthProfile": depth,
    "LagProfile": lag,
    "NormHistory": lambda: flow.norm_history([1.0, math.nan, 3.0, math.inf]),
    "UpdateSizes": update_sizes,
}
PLAIN = {**MAKE, "RecurrentMatrix": lambda: flow.recurrent_matrices(ran("rnn"))[0]}


def assert_same(a, b):
    """The same types, names and numbers, to the last bit, all the way down."""
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    elif dataclasses.is_dataclass(a):
        assert type(a) is type(b)
        for f in dataclasses.fields(a):
            assert_same(getattr(a, f.name), getattr(b, f.name))
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for k in a:
            assert_same(a[k], b[k])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for v, w in zip(a, b, strict=True):
            assert_same(v, w)
    else:
        assert type(a) is type(b) and (a == b or (a != a and b != b))


@pytest.mark.parametrize("name", PLAIN)
def test_it_comes_back_from_a_file_and_from_a_line(name, tmp_path):
    result = PLAIN[name]()
    cls = type(result)
    path = result.save(tmp_path / "deep" / "result.safetensors")
    assert [p.name for p in path.parent.iterdir()] == ["result.safetensors"]
    line = json.dumps(result.to_dict(), allow_nan=False)
    for again in (cls.load(path), cls.from_dict(json.loads(line))):
        assert_same(result, again)
        assert str(result) == str(again)


@pytest.mark.parametrize("name", PLAIN)
def test_it_prints_and_is_html_without_scripts(name):
    result = PLAIN[name]()
    page = result._repr_html_()
    assert str(result).splitlines()[0].split("(")[0].split("<")[0].split(">")[0] in page
    assert "<script" not in page and "object at 0x" not in page


@pytest.mark.parametrize("name", MAKE)
def test_it_draws_into_given_axes_and_into_its_own(name):
    matplotlib = pytest.importorskip("matplotlib", reason="plots are an optional extra")
    matplotlib.use("agg")
    from matplotlib import pyplot

    result = MAKE[name]()
    figure, ax = pyplot.subplots()
    assert result.plot(ax=ax) is ax
    assert ax.lines or ax.patches or ax.images
    assert ax.get_xlabel() and (ax.get_ylabel() or name == "UpdateSizes")
    assert result.plot() is not ax
    figure.canvas.draw()
    pyplot.close("all")


def test_the_map_is_drawn_with_what_is_zero_left_blank():
    matplotlib = pytest.importorskip("matplotlib", reason="plots are an optional extra")
    matplotlib.use("agg")
    from matplotlib import pyplot

    found = MAKE["GradientFlow"]()
    ax = found.plot_map("c")
    shown = torch.tensor(ax.images[0].get_array().filled(math.nan))
    below = torch.ones(T, T, dtype=bool).tril()
    torch.testing.assert_close(shown[below].double(), found.maps["c"][below].log10())
    assert shown[~below].isnan().all()
    pyplot.close("all")
    with pytest.raises(FlowError, match="'q' was not measured"):
        found.plot_map("q")


@pytest.mark.parametrize("name", MAKE)
def test_without_matplotlib_a_plot_says_what_to_install(name, monkeypatch):
    result = MAKE[name]()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ThroughtimeError, match="pip install matplotlib") as caught:
        result.plot()
    assert "\n" not in str(caught.value)
    str(result)


def test_what_cannot_be_followed_is_printed_all_the_same():
    zero, huge = torch.zeros(3, 3, dtype=F64), torch.full((3, 3), math.inf, dtype=F64).tril()
    found = flow.GradientFlow({"h": torch.eye(3, dtype=F64), "c": zero, "z": huge}, "lstm")
    assert "no gradient with respect to 'c'" in str(found) and "it explodes" in str(found)
    assert list(found.profiles()) == ["h"]
    assert "<svg" in found._repr_html_()


def test_names_are_escaped():
    page = flow.GradientFlow({"<b>": torch.eye(3, dtype=F64)}, "<script>")._repr_html_()
    assert "<b>" not in page and "<script" not in page


def test_another_kind_of_result_is_refused(tmp_path):
    path = MAKE["NormHistory"]().save(tmp_path / "norms")
    with pytest.raises(CheckpointError, match="holds a NormHistory, and not a GradientFlow"):
        flow.GradientFlow.load(path)
