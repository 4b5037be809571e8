"""What is measured of a layer is computed by the backend that the layer runs on."""

from dataclasses import replace

import pytest
import torch

from tests.flow.runs import ran
from throughtime import flow, nn
from throughtime.engine.arrived import Ready
from throughtime.engine.cpu import map as by_cpu
from throughtime.engine.triton import map as by_triton
from throughtime.flow import sent
from throughtime.flow.measure import recurrences

from .problems import DEVICE

MAKERS = {
    "drop-in": lambda **how: nn.GRU(3, 5, num_layers=2, **how),
    "any cell": lambda **how: nn.Recurrent("lstm-peephole", 3, 5, bidirectional=True, **how),
}


def layer_and_input(make, backend):
    torch.manual_seed(0)
    return make(backend=backend, device=DEVICE), torch.randn(4, 2, 3, device=DEVICE)


@pytest.fixture
def prepared(monkeypatch):
    """What was made ready to send gradients back through, one for each recurrence; None where torch walks."""
    found: list[Ready | None] = []
    prepare = sent.prepared
    monkeypatch.setattr(sent, "prepared", lambda r: found.append(prepare(r)) or found[-1])
    return found


def kinds(prepared):
    found = {None if ready is None else type(ready) for ready in prepared}
    prepared.clear()
    return found


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_map_follows_the_layer(make, prepared):
    maps = {}
    for backend, kind in (("triton", by_triton.Prepared), ("torch", type(None))):
        layer, x = layer_and_input(make, backend)
        maps[backend] = flow.gradient_flow(layer, x, lambda y: y.square().sum()).maps
        assert kinds(prepared) == {None if kind is type(None) else kind}
    for name, value in maps["torch"].items():
        torch.testing.assert_close(maps["triton"][name], value, rtol=1e-4, atol=1e-7)  # the loss sees y in float32


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_capture_follows_the_layers_of_a_model(make, prepared):
    layer, x = layer_and_input(make, "triton")
    with flow.capture(layer) as captured:
        layer(x)[0].square().sum().backward()
    assert all(c.recurrence.backend == "triton" for c in captured.recurrences)
    assert all(float(c.flow().maps["h"].sum()) > 0 for c in captured.recurrences)
    assert kinds(prepared) == {by_triton.Prepared}


def test_calls_on_two_backends_are_not_one_recurrence():
    layer, x = layer_and_input(lambda **how: nn.GRU(3, 5, **how), "triton")
    with flow.capture(layer) as captured:
        state = layer(x)[1]
        layer.backend = "torch"
        layer(x, state)[0].sum().backward()
    assert {c.recurrence.backend for c in captured.recurrences} == {"triton", "torch"}


@pytest.mark.skipif(DEVICE.type != "cpu", reason="the CPU kernels take no tensors of a GPU")
@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_on_a_cpu_the_kernels_are_the_cpus_unless_asked_otherwise(backend, prepared):
    layer, x = layer_and_input(MAKERS["drop-in"], backend)
    flow.gradient_flow(layer, x, lambda y: y.square().sum())
    torch_layer = torch.nn.GRU(3, 5)
    with flow.capture(torch_layer) as captured:
        torch_layer(x)[0].sum().backward()
    captured.recurrences[0].flow()
    assert captured.recurrences[0].recurrence.backend == "auto"
    assert kinds(prepared) == {by_cpu.Prepared}


@pytest.mark.skipif(DEVICE.type != "cpu", reason="on a GPU Triton can measure whatever it can run")
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_backend_that_cannot_measure_is_not_followed(backend, monkeypatch):
    # The reference has no traced step; without its interpreter Triton runs nothing in main memory.
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert isinstance(sent.prepared(replace(ran("lstm"), backend=backend)), by_cpu.Prepared)


def test_the_layers_own_choice_stands_before_the_variable(monkeypatch, prepared):
    monkeypatch.setenv("THROUGHTIME_BACKEND", "torch")
    layer, x = layer_and_input(MAKERS["drop-in"], "triton")
    flow.gradient_flow(layer, x, lambda y: y.square().sum())
    assert kinds(prepared) == {by_triton.Prepared}


def test_the_rows_run_ahead_only_for_the_cpu_kernels():
    layer, x = layer_and_input(MAKERS["drop-in"], "triton")
    r = recurrences(layer, x, ahead=0)[0][0]
    assert r.laid_out() is None and r.backend == "triton"
