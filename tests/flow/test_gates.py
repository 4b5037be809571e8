"""Gates found on the tape, their distribution, their saturation, and the eight regimes, against numbers put in."""

import math

import pytest
import torch
from torch.nn import functional

from tests.engine.problems import F64
from tests.flow.runs import of_module, ran
from throughtime import cells, nn
from throughtime.errors import FlowError
from throughtime.flow.anatomy import anatomy, carousel_factor
from throughtime.flow.gates import REGIMES, gate_statistics, quantiles

GATES = {
    "rnn": [], "rnn-logistic": [], "preactivation": [], "additive-memory": [], "lstm-1997": ["i", "o"],
    "lstm": ["i", "f", "o"], "lstm-peephole": ["i", "f", "o"], "gru": ["r", "u"], "gru-reset-before": ["r", "u"],
}  # fmt: skip


@pytest.mark.parametrize("name", GATES)
def test_gates_of_our_cells(name):
    assert list(anatomy(cells.by_name(name)).gates) == GATES[name]


class Own(cells.Cell):
    """Gates in every form that people write: apart, with a constant, with layer norm; an activation that is none."""

    gates = ("keep", "add", "value")
    states = ("m",)
    apart = ("keep",)

    def step(self, z, s, w):
        keep = torch.sigmoid(z.keep_x + z.keep_h + 1)
        centred = z.add - z.add.mean(-1, keepdim=True)
        add = torch.sigmoid(centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-5))
        return keep * s.m + (1 - add) * functional.silu(z.value)


class Lerp(cells.Cell):
    """h + u (n - h), another way to write (1 - u) h + u n."""

    gates = ("u", "n")

    def step(self, z, s, w):
        return s.h + torch.sigmoid(z.u) * (torch.tanh(z.n) - s.h)


class Coupled(cells.Cell):
    """The LSTM whose input gate is 1 - f (Greff 2017)."""

    gates = ("f", "g", "o")
    states = ("h", "c")

    def step(self, z, s, w):
        f = torch.sigmoid(z.f)
        c = f * s.c + (1 - f) * torch.tanh(z.g)
        return torch.sigmoid(z.o) * torch.tanh(c), c


class Chained(cells.Cell):
    """A gate whose net input has another gate in it, in front of a matrix and as it is."""

    gates = ("r", "u", "k", "n")
    inside = ("u",)

    def step(self, z, s, w):
        r = torch.sigmoid(z.r)
        u = torch.sigmoid(z.u + functional.linear(r * s.h, w.U_u))
        return torch.sigmoid(z.k + r) * u * s.h + torch.tanh(z.n)


def test_gates_and_memories_of_a_users_cell():
    chained = anatomy(Chained())
    assert list(chained.gates) == ["r", "u", "k"] and list(chained.memories) == ["h"]
    own = anatomy(Own())
    assert list(own.gates) == ["keep", "add"] and list(own.memories) == ["m"] and not own.roles
    assert list(anatomy(Lerp()).memories) == ["h"]
    assert list(anatomy(Coupled()).roles) == ["c"]


def test_the_factor_of_a_memory_is_what_multiplies_the_old_state():
    def factor(cell, H=4):
        module = nn.Recurrent(cell, 3, H)
        r = of_module(module, torch.randn(5, 2, 3))
        return r, carousel_factor(r, r.cell.states[-1])

    r, f = factor("lstm")
    torch.testing.assert_close(f, r.net_inputs["f"].sigmoid())
    r, f = factor("gru")
    torch.testing.assert_close(f, r.net_inputs["u"].sigmoid())
    r, f = factor(Lerp())
    torch.testing.assert_close(f, 1 - r.net_inputs["u"].sigmoid())
    r, f = factor("lstm-1997")
    assert (f == 1).all()
    r, f = factor(Own())
    torch.testing.assert_close(f, (r.net_inputs["keep_x"] + r.net_inputs["keep_h"] + 1).sigmoid())
    # With peepholes the gate depends on c too; the carousel is still f alone.
    r, f = factor("lstm-peephole")
    assert ((f > 0) & (f < 1)).all()


def test_a_states_share_of_itself_may_be_a_constant():
    r = ran("users-own")  # m = tanh(V h) + m/3
    torch.testing.assert_close(carousel_factor(r, "m"), torch.full_like(r.sequences[0], 1 / 3))


def biased_lstm(i, f, o, H=3, cell="lstm"):
    module = nn.Recurrent(cell, 2, H).double()
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
        names = module.step_cell().gates
        for name, value in (("i", i), ("f", f), ("o", o)):
            if name in names:
                k = names.index(name)
                module.bias_ih_l0[k * H : (k + 1) * H] = torch.as_tensor(value, dtype=F64)
    return of_module(module, torch.randn(6, 2, 2))


def test_a_constant_gate():
    found = gate_statistics(biased_lstm(math.log(3), 4.0, [-9.0, 0.0, 9.0]))
    i, f, o = found["i"], found["f"], found["o"]
    assert i.mean == pytest.approx(0.75) and i.quantiles == pytest.approx((0.75,) * 5) and i.low == i.high == 0
    assert i.histogram[15] == 1 or i.histogram[14] == 1  # 0.75 lies on the edge of two bins
    assert (f.low, f.high, f.stuck_units) == (0, 1, 3)  # sigmoid(4) = 0.982
    assert o.low == pytest.approx(1 / 3) and o.high == pytest.approx(1 / 3) and o.stuck_units == 2
    assert o.unit_mean.tolist() == pytest.approx([0.000123, 0.5, 0.999877], abs=1e-6)
    for gate in found.gates:
        assert sum(gate.histogram) == pytest.approx(1) and len(gate.histogram) == 20


def test_statistics_are_those_of_the_gates_as_they_ran():
    r = ran("lstm-peephole", T=9, B=3, lengths=[9, 4, 1], H=4)
    found = gate_statistics(r)
    # By hand, from the states; the output gate sees the new c.
    keep = torch.arange(9)[:, None] < r.lengths
    o = (r.net_inputs["o"] + r.weights.units[2].detach() * r.sequences[1]).sigmoid()[keep]
    assert o.shape == (14, 4)
    assert found["o"].mean == pytest.approx(o.mean().item())
    torch.testing.assert_close(found["o"].unit_mean, o.mean(0))
    want = torch.quantile(o.flatten(), torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=F64))
    torch.testing.assert_close(torch.tensor(found["o"].quantiles, dtype=F64), want)
    assert found["o"].low == pytest.approx((o < 0.05).double().mean().item())


@pytest.mark.parametrize("code", REGIMES, ids=list(REGIMES.values()))
def test_each_regime_by_itself(code):
    found = gate_statistics(biased_lstm(*(4.0 if v else -4.0 for v in code)))
    (regimes,) = found.regimes
    assert regimes.state == "c" and regimes.undecided == 0
    assert regimes.shares == {name: float(name == REGIMES[code]) for name in REGIMES.values()}


def test_the_three_regimes_that_have_a_name_in_the_literature():
    assert REGIMES[0, 1, 1] == "read-only" and REGIMES[1, 0, 1] == "refresh" and REGIMES[1, 1, 0] == "store"
    assert len(set(REGIMES.values())) == 8


def test_regimes_unit_by_unit():
    (regimes,) = gate_statistics(biased_lstm([4.0, 4, -4], [-4.0, 4, 4], [4.0, -4, 4])).regimes
    names = list(REGIMES.values())
    assert [names[k] for k in regimes.unit.argmax(1)] == ["refresh", "store", "read-only"]
    assert sum(regimes.shares.values()) == pytest.approx(1)
    assert "refresh 33%" in str(regimes)


def test_without_a_forget_gate_the_memory_is_always_kept():
    (regimes,) = gate_statistics(biased_lstm(-4.0, None, 4.0, cell="lstm-1997")).regimes
    assert regimes.shares["read-only"] == 1


def test_a_new_network_is_undecided():
    (regimes,) = gate_statistics(biased_lstm(0.0, 0.0, 0.0)).regimes
    assert regimes.undecided == 1


def test_coupled_input_gate_has_regimes_and_a_gru_has_none():
    r = of_module(nn.Recurrent(Coupled(), 2, 3), torch.randn(20, 2, 2))
    (regimes,) = gate_statistics(r).regimes
    # 1 - f and f are never both open.
    assert regimes.shares["store"] == regimes.shares["accumulate"] == regimes.shares["erase"] == 0
    assert gate_statistics(ran("gru")).regimes == ()


def test_quantiles_agree_with_torch():
    v = torch.rand(7, 11, dtype=F64)
    at = (0.0, 0.05, 0.31, 0.5, 1.0)
    want = torch.quantile(v.flatten(), torch.tensor(at, dtype=F64))
    assert quantiles(v, at) == pytest.approx(want.tolist())
    assert quantiles(torch.tensor([2.0]), (0.3,)) == (2.0,)


def test_prints_itself():
    text = str(gate_statistics(biased_lstm(0.0, 4.0, -4.0)))
    assert "Gates (LSTM, layer 0)" in text
    assert "f: mean 0.98, median 0.98, 0 [                   @] 1, saturated 0% low, 100% high; 3 of 3 units" in text
    assert "time in each regime, c: hold" in text or "c: store" in text


def test_refusals():
    with pytest.raises(FlowError, match=r"Simple \(logistic\) has no gates"):
        gate_statistics(ran("rnn-logistic"))
    with pytest.raises(FlowError, match="'g' is not a gate of LSTM; its gates are i, f, o"):
        gate_statistics(ran("lstm"))["g"]
