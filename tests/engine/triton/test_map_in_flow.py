"""What `throughtime.flow` measures with the Triton kernels: against brute-force autograd, and in float64's range."""

from dataclasses import replace

import pytest
import torch

from tests.flow.runs import linear, ran
from tests.flow.test_sent import assert_same, by_autograd, entering_all
from throughtime.engine.triton import schedule
from throughtime.engine.triton.map import Prepared
from throughtime.flow import Recurrence
from throughtime.flow.entering import Entering
from throughtime.flow.sent import prepared, send

from .problems import ALL, DEVICE

F64 = torch.float64


@pytest.fixture(autouse=True)
def asked_for(monkeypatch):
    monkeypatch.setenv("THROUGHTIME_BACKEND", "triton")


def there(r: Recurrence) -> Recurrence:
    """The recurrence on the device under test."""
    w = r.weights

    def moved(v):
        return None if v is None else v.detach().to(DEVICE)

    single = {n: moved(getattr(w, n)) for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    many = {n: tuple(moved(v) for v in getattr(w, n)) for n in ("units", "matrices")}
    states = None if r.states is None else [moved(v) for v in r.states]
    return replace(r, weights=w._replace(**single, **many), x=moved(r.x), states=states, lengths=moved(r.lengths))


def moved(entering: Entering) -> Entering:
    above = entering.above
    above = None if above is None else [None if v is None else v.to(DEVICE) for v in above]
    return replace(entering, direct=[None if v is None else v.to(DEVICE) for v in entering.direct], above=above)


def on_cpu(sent):
    names = {n: v.cpu() for n, v in sent.sizes.items()}
    values = None if sent.values is None else {n: v.cpu() for n, v in sent.values.items()}
    return sent._replace(sizes=names, dx=None if sent.dx is None else sent.dx.cpu(), values=values)


@pytest.mark.parametrize("name", ALL)
def test_equals_autograd(name):
    for options, above in (({"lengths": [4, 1, 3]}, False), ({"lengths": [2, 4, 3], "reverse": True}, True)):
        r = ran(name, T=4, **options)
        entering = entering_all(r, above)
        here = there(r)
        assert isinstance(prepared(here), Prepared)
        assert_same(on_cpu(send(here, moved(entering), want_dx=True, want_values=True)), *by_autograd(r, entering))


@pytest.mark.parametrize("mode", ["alone", "stepwise"])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("factor", [1e-6, 1e6], ids=["vanishes", "explodes"])
def test_a_gradient_may_go_as_far_as_float64_reaches(dtype, factor, mode, monkeypatch):
    # h' = r h: dL_t/dh_k = r^(t-k), exactly. Rows that are far apart in size stand side by side.
    if mode == "stepwise":
        monkeypatch.setattr(schedule, "on_chip", lambda device: 0)
    T = 50
    recurrence = there(linear(torch.eye(3, dtype=F64) * factor, T=T, B=1))
    g = torch.zeros(T, 1, 3, dtype=F64, device=DEVICE)
    g[-1, 0, 0], g[-10, 0, 1] = 1, 1e-100 if factor < 1 else 1e50
    sizes = send(replace(recurrence, dtype=dtype), Entering([g], None, (T - 10, T - 1))).sizes["h"].cpu()
    want = torch.tensor([factor ** (T - 1 - k) for k in range(T)], dtype=F64)
    rtol = 1e-10 if dtype == F64 else 1e-4
    torch.testing.assert_close(sizes[1], want, rtol=rtol, atol=0)
    late = torch.tensor([factor ** (T - 10 - k) * float(g[-10, 0, 1]) for k in range(T - 9)], dtype=F64)
    normal = late > 1e-290
    torch.testing.assert_close(sizes[0, : T - 9][normal], late[normal], rtol=rtol, atol=0)


@pytest.mark.parametrize("size", [1e-300, 1e300])
def test_any_size_may_enter(size):
    r = ran("gru", T=4, scale=0.3)
    entering, r = moved(entering_all(r)), there(r)
    want = send(r, entering).sizes["h"] * size
    for dtype in (F64, torch.float32):
        large = Entering([v * size for v in entering.direct])
        torch.testing.assert_close(send(replace(r, dtype=dtype), large).sizes["h"], want, rtol=1e-5, atol=0)


def test_a_small_loss_joins_a_large_gradient():
    # Row 0 brings 1e-280 at step 3 and 1e+200 at step 1; neither drowns before it must.
    r = there(linear(torch.eye(2, dtype=F64), T=5, B=1))
    above = torch.zeros(1, 5, 1, 2, dtype=F64, device=DEVICE)
    above[0, 3, 0, 0], above[0, 1, 0, 1] = 1e-280, 1e200
    for dtype in (F64, torch.float32):
        sizes = send(replace(r, dtype=dtype), Entering([None], [above], (0,))).sizes["h"][0].cpu()
        torch.testing.assert_close(sizes[2:4], torch.full((2,), 1e-280, dtype=F64), rtol=1e-6, atol=0)
        torch.testing.assert_close(sizes[:2], torch.full((2,), 1e200, dtype=F64), rtol=1e-6, atol=0)


def test_all_losses_together_are_their_sum():
    r = ran("gru", T=5, reverse=True)
    whole, r = moved(entering_all(r, above=True)), there(r)
    apart, together = (send(r, e, want_values=True) for e in (whole, whole.sum()))
    for name, value in together.values.items():
        torch.testing.assert_close(value[0], apart.values[name].sum(0), rtol=1e-12, atol=1e-13)


def test_they_are_not_used_unless_asked_for(monkeypatch):
    monkeypatch.delenv("THROUGHTIME_BACKEND")
    assert not isinstance(prepared(there(ran("lstm"))), Prepared)
