"""Every operation of a tape in Triton against its meaning in torch, at the ends of the numbers too."""

import math

import pytest
import torch

from throughtime.engine.interpret import MEANING
from throughtime.engine.optimise import arity
from throughtime.engine.tape import OPS, Op
from throughtime.engine.triton import kernel
from throughtime.engine.triton.expressions import lines_of
from throughtime.engine.triton.writer import CONSTANTS, Text

from ..test_optimise import MERGED
from .problems import DEVICE

N = 1024
WHOLE_ROW = {"linear", "linear_t", "mean"}
FUNCTIONS = {**MEANING, **MERGED, "clip_grad": lambda a, k: a}
CONSTS = {
    "affine": [(2.5, -0.75), (-1.0, 0.0)],
    "power": [(k,) for k in (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 1.7)],
    "clamp": [(-0.5, 0.25), (-math.inf, 0.1), (0.1, math.inf)],
    "heaviside": [(0.0,), (0.5,), (1.0,)],
    "clip_grad": [(1.0,)],
}
ENDS = [0.0, 1e-20, 1e-4, 0.3, 0.62, 0.63, 1.0, 3.0, 19.9, 20.1, 60.0, 88.0, 200.0, 1e30, math.inf]
CASES = [(name, consts) for name in FUNCTIONS if name not in WHOLE_ROW for consts in CONSTS.get(name, [()])]


def apply(op: Op, args: list[torch.Tensor]) -> torch.Tensor:
    """The operation on blocks of N numbers, as a kernel of its own."""
    dtype = args[0].dtype
    names = [f"a{k}" for k in range(len(args))]
    lines = ["o = tl.arange(0, BM)", *(f"{n} = tl.load({n}_at + o).to(CT)" for n in names)]
    lines += [*lines_of(op, "y", names, dtype == torch.float64), "tl.store(out_at + o, y)"]
    params = tuple(f"{n}_at" for n in [*names, "out"])
    head = f"def one({', '.join(params)}, {', '.join(f'{c}: tl.constexpr' for c in CONSTANTS)}):"
    text = Text("one", params, "\n".join([head, *("    " + line for line in lines), ""]))
    out = torch.empty_like(args[0])
    sizes = dict.fromkeys(("H", "P", "BH", "BP", "BK", "SPLIT", "TILES"), 1)
    constants = {**kernel.constants_of(dtype, dtype, True, BM=N, **sizes), "PRECISION": "ieee"}
    kernel.launch(text, (1, 1), dict(zip(params, [*args, out], strict=True)), constants, kernel.How(4, 1))
    return out


def test_every_operation_is_here():
    assert {name for name, _ in CASES} == {*OPS, *MERGED} - WHOLE_ROW
    assert all(arity(name)[1] == len(consts) for name, consts in CASES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name, consts", CASES)
def test_it_means_the_same(name, consts, dtype):
    count = arity(name)[0]
    args = [torch.randn(N, dtype=torch.float64) * 3 for _ in range(count)]
    if count == 1:
        ends = torch.tensor([*ENDS, *(-v for v in ENDS), math.nan], dtype=torch.float64)
        if name == "power" and consts[0] % 1:  # (-inf)^1.5 is inf in C; here a NaN, as for every number below zero
            ends = ends[ends != -math.inf]
        args[0][: len(ends)] = ends
    else:  # ties, zeros and a NaN in each place
        args[0][:9], args[1][:9] = torch.arange(9.0) - 4, (torch.arange(9.0) - 4).flip(0)
        for k, a in enumerate(args):
            a[9 + k] = math.nan
    args = [a.to(DEVICE, dtype) for a in args]
    ours, theirs = apply(Op(name, tuple(range(count)), consts), args), FUNCTIONS[name](*args, *consts)
    scale = max(1.0, *(float(a[a.isfinite()].abs().max()) for a in args)) if count > 1 else 0.0
    step = torch.finfo(dtype).eps
    # A few roundings of what is added up; a number too small for the dtype may become 0. A GPU's own float32
    # exponential rounds its argument first, which tells at 88.
    atol, rtol = 16 * step * scale**3 + 1e-37, (16 if DEVICE.type == "cpu" else 128) * step
    torch.testing.assert_close(ours, theirs.to(dtype), rtol=rtol, atol=atol, equal_nan=True)
