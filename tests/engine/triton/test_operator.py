"""`unroll` with the Triton kernels as a user calls it: against the float64 reference, compiled, under autocast."""

import subprocess
import sys

import pytest
import torch

import throughtime
from tests.engine.problems import assert_same, gradients, loss_of, problem
from throughtime import cells
from throughtime.engine import unroll
from throughtime.engine.operator import backward_op, unroll_op
from throughtime.engine.trace import program
from throughtime.errors import BackendError

from .problems import ALL, DEVICE, to_device


def both(p):
    """Every output and every gradient by name, from the Triton kernels and from the reference."""
    p = to_device(p)
    found = []
    for backend in ("triton", "reference"):
        sequences, finals = p.unroll(backend=backend)
        named = dict(zip([f"{part} {n}" for part in ("sequence", "last") for n in p.cell.states],
                         [*sequences, *finals], strict=True))  # fmt: skip
        found.append({**named, **gradients(p, (sequences, finals))})
    return found


@pytest.mark.parametrize("name", ALL)
def test_every_gradient_by_name(name):
    assert_same(*both(problem(name, T=5, B=3, D=2, H=5, lengths=[5, 2, 3], reverse=True)))


def test_low_memory():
    p = to_device(problem("lstm-peephole", T=7, lengths=[7, 1, 4]))
    assert_same(*(gradients(p, p.unroll(backend="triton", memory=m)) for m in ("low", "fast")))


def test_second_derivatives_are_the_reference_s():
    p = to_device(problem("gru", T=3, B=2, D=2, H=3))
    seconds = []
    for backend in ("triton", "reference"):
        first = gradients(p, p.unroll(backend=backend), create_graph=True)
        seconds.append(gradients(p, [list(first.values())]))
    assert_same(*seconds, atol=1e-9)


@pytest.mark.parametrize("name, memory", [("lstm-peephole", "fast"), ("additive-memory", "low")])
def test_opcheck(name, memory):
    p = to_device(problem(name, T=3, B=2, D=2, H=3, lengths=[3, 1]))
    b = torch.randn(len(p.cell.columns) * 3, dtype=torch.float64, device=DEVICE, requires_grad=True)
    W = p.weights["weight_ih"]
    U = p.weights.get("weight_hh", W.new_zeros(0, 3))
    weights = (p.x, W, U, b, p.units, p.matrices, p.states, p.lengths)
    args = (program(p.cell), *weights, False, 0.5, False, "triton", memory, 2)
    # Of opcheck's tests those that run the kernels once; the others stand beside the CPU's.
    torch.library.opcheck(unroll_op, args, test_utils=("test_schema", "test_faketensor"))
    with torch.no_grad():
        *out, saved = unroll_op(*args)
    ds = [torch.randn_like(v) for v in out]
    sequences = [] if memory == "low" else out[:2]
    back = (*args[:9], sequences, saved, ds[:2], ds[2:], False, 0.5, False, "triton", memory, True)
    torch.library.opcheck(backward_op, back, test_utils=("test_schema", "test_faketensor"))


def test_compiles_without_a_graph_break():
    p = to_device(problem("lstm", T=3, B=2, D=2, H=3))

    def run(x):
        p.x = x
        return loss_of(p.unroll(clip=0.5, backend="triton"))

    x = p.x
    wanted = torch.autograd.grad(run(x), [x, p.weights["weight_hh"]])
    got = torch.autograd.grad(torch.compile(run, fullgraph=True, backend="aot_eager")(x), [x, p.weights["weight_hh"]])
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_autocast_multiplies_short_and_keeps_the_states():
    p = to_device(problem("lstm", T=4, B=3, D=3, H=5))
    x, W, U = (v.detach().float() for v in (p.x, p.weights["weight_ih"], p.weights["weight_hh"]))
    (truth, _), _ = unroll(p.cell, x, W, U, backend="reference")
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        (h, c), _ = unroll(p.cell, x, W, U, backend="triton")
    assert h.dtype == c.dtype == torch.float32
    error = (h - truth).abs().max()
    assert 1e-6 < error < 2e-2


def test_a_layer_runs_on_them_and_says_so():
    ours = throughtime.nn.LSTM(3, 5, num_layers=2, bidirectional=True, backend="triton").to(DEVICE)
    theirs = torch.nn.LSTM(3, 5, num_layers=2, bidirectional=True).to(DEVICE)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 2, 3, device=DEVICE)
    torch.testing.assert_close(ours(x)[0], theirs(x)[0], rtol=1e-5, atol=1e-6)
    assert "runs on 'triton'" in throughtime.explain(ours)


def test_without_interpreter_and_gpu_the_refusal_is_clear(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x, W = torch.randn(2, 1, 3), torch.randn(4, 3)
    with pytest.raises(BackendError, match=r"'triton' cannot run this: .*NVIDIA GPUs, the tensors are on cpu; choose"):
        unroll(cells.AdditiveState(), x, W, backend="triton")


ALONE = """
import sys
sys.modules["triton"] = None  # as if it were not installed
import torch, throughtime
from throughtime.engine.triton import why_not
assert throughtime.nn.GRU(3, 4)(torch.randn(2, 1, 3))[0].shape == (2, 1, 4)
print(why_not("cuda", torch.float32, torch.float32))
"""


def test_the_package_works_without_triton():
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Triton is not installed" in done.stdout
