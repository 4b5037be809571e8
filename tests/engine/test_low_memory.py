"""memory="low" against memory="fast": the same values and gradients, and memory that grows as the square root of T."""

import subprocess
import sys

import pytest
import torch

from tests.engine.problems import ALL, assert_same, gradients, loss_of, problem
from throughtime import cells, nn
from throughtime.engine import low_memory, unroll
from throughtime.errors import BackendError

SETTINGS = {
    "plain": {"T": 11},
    "reverse": {"T": 11, "reverse": True},
    "lengths": {"T": 11, "lengths": [3, 11, 1]},
    "lengths, reverse": {"T": 11, "lengths": [4, 1, 8], "reverse": True},
    "one step": {"T": 1},
    "one of all": {"T": 1, "B": 1, "D": 1, "H": 1, "P": 1},
    "two steps": {"T": 2, "lengths": [2, 1, 1]},
    "clipped": {"T": 9, "clip": 0.05},
    "truncated": {"T": 9, "truncated": True, "lengths": [9, 5, 7]},
}


def assert_low_is_fast(p, backend):
    fast, low = (p.unroll(backend=backend, memory=memory) for memory in ("fast", "low"))
    for a, b in zip([*low[0], *low[1]], [*fast[0], *fast[1]], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert_same(gradients(p, low), gradients(p, fast))


@pytest.mark.parametrize("name", ALL)
def test_every_cell(name):
    for setting in SETTINGS.values():
        assert_low_is_fast(problem(name, **setting), "cpu")


@pytest.mark.parametrize("name", ["lstm-peephole", "gru-reset-before", "users-own"])
def test_with_the_torch_backend(name):
    for setting in SETTINGS.values():
        assert_low_is_fast(problem(name, **setting), "torch")


def test_parts_cover_every_step_once():
    for T in range(1, 40):
        for reverse in (False, True):
            parts = list(low_memory._parts(T, reverse))
            steps = [t for part in parts for t in range(part.start, part.stop)]
            assert sorted(steps) == list(range(T)) and len(parts) == low_memory.number_of_parts(T)
            assert all(0 < part.stop - part.start <= T**0.5 + 1 for part in parts)


@pytest.mark.parametrize("name", ["lstm-peephole", "gru"])
def test_second_derivative(name):
    p = problem(name, T=5, lengths=[5, 2, 3])
    seconds = []
    for memory in ("low", "fast"):
        first = gradients(p, p.unroll(memory=memory), create_graph=True)
        seconds.append(gradients(p, [list(first.values())]))
    assert_same(*seconds, atol=1e-9)


def test_states_that_nobody_wants_are_not_held():
    p = problem("lstm", T=11, lengths=[3, 11, 1])
    (h, c), finals = p.unroll(memory="low", every_state=False)
    assert h.shape == (11, 3, 5) and c.numel() == 0
    wanted = p.unroll()
    assert_same(gradients(p, [[h], finals]), gradients(p, [[wanted[0][0]], wanted[1]]))
    with torch.no_grad():
        assert p.unroll(memory="low", every_state=False)[0][1].numel() == 0


def test_compiles_for_any_number_of_steps():
    p = problem("gru", T=7)

    def run(x):
        p.x = x
        return loss_of(p.unroll(memory="low"))

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=True)
    for T in (7, 12, 26):
        x = torch.randn(T, 3, 4, dtype=torch.float64, requires_grad=True)
        got, want = (torch.autograd.grad(f(x), [x, p.weights["weight_hh"]]) for f in (compiled, run))
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_weights_in_bfloat16_are_added_up_in_float32():
    layer = nn.LSTM(6, 18)
    x = torch.randn(50, 3, 6)
    grads = []
    for layer.memory in ("fast", "low"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, _ = layer(x)
        grads.append(torch.autograd.grad(y.float().square().mean(), list(layer.parameters())))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.02 * float(a.abs().max()))  # both round dz to 8 bits


@pytest.mark.parametrize("make", [nn.RNN, nn.LSTM, nn.GRU])
def test_a_layer_of_layers(make):
    fast = make(3, 5, 2, bidirectional=True, dtype=torch.float64)
    low = make(3, 5, 2, bidirectional=True, dtype=torch.float64, memory="low")
    low.load_state_dict(fast.state_dict())
    assert "memory='low'" in repr(low) and "memory" not in repr(fast)
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.randn(9, 3, 3, dtype=torch.float64), [9, 4, 2])
    grads = []
    for layer in (fast, low):
        y, last = layer(packed)
        last = last if isinstance(last, tuple) else (last,)
        loss = loss_of([[y.data, *last]])
        grads.append(
            dict(zip(dict(layer.named_parameters()), torch.autograd.grad(loss, list(layer.parameters())), strict=True))
        )
    assert_same(*grads)
    for name, v in fast.states(packed).items():
        torch.testing.assert_close(low.states(packed)[name], v, rtol=1e-12, atol=1e-12)


def kept(layer, x) -> int:
    """Bytes that the graph of a call holds besides x and the weights."""
    found: dict[int, int] = {}

    def pack(t):
        found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x)
    given = {t.untyped_storage().data_ptr() for t in (x, *layer.parameters())}
    return sum(n for at, n in found.items() if at not in given)


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn", "lstm-peephole"])
def test_what_is_kept_grows_as_the_root_of_T(name):
    fast, low = nn.Recurrent(name, 4, 16), nn.Recurrent(name, 4, 16, memory="low")
    short, long = torch.randn(400, 2, 4), torch.randn(10_000, 2, 4)
    assert kept(fast, long) == pytest.approx(25 * kept(fast, short), rel=0.1)
    assert kept(low, long) < 6 * kept(low, short)  # sqrt(25) = 5
    assert kept(low, long) < kept(fast, long) / 50


PEAK = """
import sys, torch, throughtime
T, B, H = 10_000, 4, 64
torch.set_num_threads(1)
layer = torch.nn.LSTM(H, H) if sys.argv[1] == "torch" else throughtime.nn.LSTM(H, H, memory="low")

def step(x):
    return layer(x)[1][0].sum().backward()

def now(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))

x = torch.randn(T, B, H)
step(x[:50])
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
before = now("VmRSS")
step(x)
print(now("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from Linux's /proc")
def test_peak_of_a_long_training_step_is_a_tenth_of_torchs():
    low, theirs = (
        int(subprocess.run([sys.executable, "-c", PEAK, who], capture_output=True, text=True, check=True).stdout)
        for who in ("ours", "torch")
    )
    assert low < theirs / 10, (low, theirs)


def test_what_cannot_be_done_is_said():
    with pytest.raises(BackendError, match="unknown memory 'small'; it must be one of fast, low"):
        nn.LSTM(2, 3, memory="small")
    with pytest.raises(BackendError, match=r'reference backend keeps the graph of every step.*memory="fast"'):
        unroll(
            cells.LSTM(), torch.randn(2, 1, 3), torch.randn(8, 3), torch.randn(8, 2), memory="low", backend="reference"
        )
