"""Tracing and deriving: every operation against autograd, the tape closed under derivation, the text form, refusals."""

import pytest
import torch
import torch.nn.functional as F

from tests.engine.problems import ALL, F64
from throughtime import cells
from throughtime.engine import derive, interpret, loads, trace
from throughtime.engine.tape import OPS, Builder, Input, Output, Tape
from throughtime.errors import CellError

H = 5


def random_inputs(tape, rows=3):
    shape = {"w": (H,), "m": (H, H)}
    return [torch.randn(shape.get(i.kind, (rows, H)), dtype=F64).requires_grad_() for i in tape.inputs]


def assert_derivative_is_right(tape):
    """The derived tape gives autograd's vector-Jacobian product for every input, summed over rows for weights."""
    inputs = random_inputs(tape)
    outputs = [v for values in interpret.run(tape, inputs) for v in values]
    outputs = [v.expand(3, H) for v in outputs]
    seeds = [torch.randn_like(v).requires_grad_() for v in outputs]
    want = torch.autograd.grad(outputs, inputs, seeds, materialize_grads=True, allow_unused=True)
    back = derive(tape)
    got = dict(zip([(o.kind, o.name) for o in back.outputs], interpret.run(back, [*inputs, *seeds]), strict=True))
    for inp, expected in zip(tape.inputs, want, strict=True):
        values = got.get((inp.kind, inp.name))
        if values is None:
            assert torch.equal(expected, torch.zeros_like(expected)), inp
            continue
        if inp.kind == "m":
            ours = sum(a.mT @ v for a, v in zip(values[::2], values[1::2], strict=True))
        else:
            ours = values[0].expand(3, H)
            ours = ours.sum(0) if inp.kind == "w" else ours
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12, msg=lambda m, i=inp: f"{i}: {m}")


@pytest.mark.parametrize("name", ALL)
def test_derivative_of_every_cell(name):
    if name != "lstm-projected":  # its matrix may not be square; its gradients are tested through unroll
        assert_derivative_is_right(trace(ALL[name]()))


@pytest.mark.parametrize("name", ALL)
def test_derivative_of_the_derivative(name):
    if name != "lstm-projected":
        back = derive(trace(ALL[name]()))
        plain = Tape(back.columns, back.inputs, back.ops, tuple(o for o in back.outputs if o.kind != "m"))
        assert_derivative_is_right(plain)


CONSTANTS = {"affine": (1.5, -0.3), "power": (3,), "clamp": (-0.4, 0.6), "heaviside": (0.0,), "clip_grad": (0.5,)}
POSITIVE = {"sqrt", "log", "power"}


@pytest.mark.parametrize("name", sorted(set(OPS) - {"linear", "linear_t", "stop", "heaviside", "sign"}))
def test_derivative_of_every_operation(name):
    inputs = [Input("s", n) for n in "abc"[: OPS[name][0]]]
    build = Builder(inputs)
    args = list(range(len(inputs)))
    if name in POSITIVE:
        args = [build.emit("softplus", args[0])]
    if name == "select":
        args[0] = build.emit("heaviside", args[0], consts=(0,))
    v = build.emit(name, *args, consts=CONSTANTS.get(name, ()))
    square = build.emit("mul", v, v)
    tape = Tape((), tuple(inputs), tuple(build.ops), (Output("s", "y", (square,)),))
    assert_derivative_is_right(tape)
    assert derive(tape).outputs, "the operation passes a gradient"


@pytest.mark.parametrize("name", ["heaviside", "sign", "stop"])
def test_operations_that_pass_no_gradient(name):
    build = Builder([Input("s", "h")])
    v = build.emit(name, 0, consts=CONSTANTS.get(name, ()))
    assert not derive(Tape((), build.inputs, tuple(build.ops), (Output("s", "y", (v,)),))).outputs


USED_IN_STEPS = {
    "numbers on either side": lambda a, b: 1 - 2 * a + (b - 3) / 4 + 1 / (b * b + 1) - a / 2,
    "powers": lambda a, b: a**2 + (b * b + 1) ** 0.5 + torch.pow(a, 3) + torch.square(b) + (a * a + 2).rsqrt(),
    "methods": lambda a, b: a.sigmoid().mul(b.tanh()).add(b, alpha=2).sub(a).neg(),
    "activations": lambda a, b: (
        F.silu(a) + F.gelu(b) + F.leaky_relu(a, 0.1) + F.softplus(b, 2.0) + F.hardtanh(a) + F.relu(b)
    ),
    "choices": lambda a, b: torch.where(a > b, a, 0.5) + torch.where(a <= 0.2, b, a) + (a < b) * a + (b >= 0) * b,
    "bounds": lambda a, b: a.clamp(-0.5, 0.5) + torch.clamp(b, min=0) + torch.maximum(a, b) * torch.minimum(a, b),
    "unary": lambda a, b: a.abs().sqrt() + b.exp().log() + a.sin() * b.cos() + torch.erf(a) + (b + 5).reciprocal(),
    "mean over units": lambda a, b: (a - a.mean(-1, keepdim=True)) * torch.mean(b, dim=-1, keepdim=True),
    "in place, as Python spells it": lambda a, b: inplace(a, b),
}


def inplace(a, b):
    v = a * 1
    v += b
    v *= a
    v -= 2
    return v


@pytest.mark.parametrize("what", USED_IN_STEPS)
def test_a_step_may_use(what):
    f = USED_IN_STEPS[what]

    class Own(cells.Cell):
        gates = ("a",)

        def step(self, z, s, w):
            return f(z.a, s.h)

    tape = trace(Own())
    a, b = torch.randn(4, H, dtype=F64), torch.randn(4, H, dtype=F64)
    (ours,) = interpret.run(tape, [a, b])
    torch.testing.assert_close(ours[0], f(a, b), rtol=1e-12, atol=1e-12)
    assert_derivative_is_right(tape)


@pytest.mark.parametrize("name", ALL)
def test_text_form_reads_back(name):
    tape = trace(ALL[name]())
    assert loads(tape.dumps()) == tape
    assert loads(derive(tape).dumps()) == derive(tape)
    assert str(tape).count("\n") == len(tape.ops) + len(tape.outputs)


NOT_A_TAPE = {
    "not json": "{",
    "another thing": '["a"]',
    "another version": '{"format":99,"columns":[],"inputs":[],"ops":[],"outputs":[]}',
    "unknown operation": '{"format":1,"columns":[],"inputs":[["s","h"]],"ops":[["system",[0],[]]],"outputs":[]}',
    "reads ahead": '{"format":1,"columns":[],"inputs":[["s","h"]],"ops":[["tanh",[1],[]]],"outputs":[]}',
    "negative": '{"format":1,"columns":[],"inputs":[["s","h"]],"ops":[["tanh",[-1],[]]],"outputs":[]}',
    "output not there": '{"format":1,"columns":[],"inputs":[["s","h"]],"ops":[],"outputs":[["s","h",[7]]]}',
    "matrix as a value": '{"format":1,"columns":[],"inputs":[["m","U"]],"ops":[["tanh",[0],[]]],"outputs":[]}',
}


@pytest.mark.parametrize("what", NOT_A_TAPE)
def test_text_from_strangers_is_checked(what):
    with pytest.raises(CellError):
        loads(NOT_A_TAPE[what])


def cell_with(step, **names):
    return type("Own", (cells.Cell,), {"gates": ("a",), "step": step, **names})()


REFUSED = {
    "z.q, but its net inputs are a": lambda self, z, s, w: z.q,
    "s.c, but its states are h": lambda self, z, s, w: s.c,
    "its weights are none": lambda self, z, s, w: w.p * z.a,
    "it returned 2": lambda self, z, s, w: (z.a, z.a),
    "it returned 0": lambda self, z, s, w: (),
    "expected a tensor": lambda self, z, s, w: 1.0,
    "torch.where": lambda self, z, s, w: z.a if z.a.sum() > 0 else s.h,
    "softmax": lambda self, z, s, w: torch.softmax(z.a, -1),
    "an index": lambda self, z, s, w: z.a[:, 0],
    "must be a Python number": lambda self, z, s, w: z.a * torch.ones(H),
    "exponent": lambda self, z, s, w: z.a**s.h,
    "mean over the units": lambda self, z, s, w: z.a.mean(0, keepdim=True),
    "one of the cell's matrices": lambda self, z, s, w: F.linear(z.a, s.h),
    r"yours is step\(z, s\)": lambda self, z, s: z.a,
    "tanh approximation": lambda self, z, s, w: F.gelu(z.a, approximate="tanh"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_step_that_cannot_be_traced_is_told_why(message):
    with pytest.raises(CellError, match=message):
        trace(cell_with(REFUSED[message]))


def test_errors_inside_a_step_are_the_users_own():
    def step(self, z, s, w):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        trace(cell_with(step))
