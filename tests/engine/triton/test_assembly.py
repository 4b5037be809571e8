"""The kernels as Triton compiles them for real GPUs: no GPU is needed for that, only its assembler, which it brings."""

from __future__ import annotations

import re

import pytest
import torch
from benchmarks import gpu_assembly as benchmark
from benchmarks.cpu_contenders import CELLS

from throughtime.engine import triton as backend
from throughtime.engine.triton import call, kernel, schedule

from .problems import given, in_low
from .test_map import made_ready

TYPES = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16",
         torch.int32: "i32", torch.int64: "i64"}  # fmt: skip
MULTIPROCESSORS = 108


def launches(monkeypatch, p):
    """What a forward and a backward pass would launch on a GPU: text, arguments, constants, options."""
    found = []

    def note(text, grid, arguments, constants, how):
        found.append((text, dict(arguments), dict(constants), how._asdict()))
        for name, v in arguments.items():
            if name.startswith(("out", "gout", "sequence", "kept", "dz")) and isinstance(v, torch.Tensor):
                v.zero_()

    made, rule = kernel.constants_of, schedule._choose
    monkeypatch.setattr(schedule, "STEPS", 64)
    monkeypatch.setattr(schedule, "UNITS", 32)
    monkeypatch.setattr(call.kernel, "launch", note)
    monkeypatch.setattr(kernel, "constants_of", lambda low, full, _, **sizes: made(low, full, False, **sizes))
    monkeypatch.setattr(schedule, "_choose", lambda *a: rule(*a[:7], MULTIPROCESSORS, schedule.ON_CHIP, True))
    p.results(backend)
    return found


def assemble(monkeypatch, launch, capability: int):
    """The compiled kernel, for a compute capability such as 80 or 90."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    text, arguments, constants, options = launch
    signature, aligned, fixed = {}, {}, {}
    for i, name in enumerate(text.params):
        v = arguments[name]
        if isinstance(v, torch.Tensor):
            signature[name], aligned[(i,)] = "*" + TYPES[v.dtype], [["tt.divisibility", 16]]
        else:
            signature[name] = "i32"
    for j, name in enumerate(kernel.CONSTANTS):
        signature[name], fixed[(len(text.params) + j,)] = "constexpr", constants[name]
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    source = ASTSource(kernel.compiled(text), signature=signature, constexprs=fixed, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def problem(name, low, **options):
    p = given(name, 2, 16, 4, options.pop("H"), dtype=torch.float32, **options)
    return p if low == torch.float32 else in_low(p, low)


CASES = [
    ("lstm", torch.bfloat16, {"H": 64, "lengths": True}, ["alone", "alone"], 80),
    ("gru-reset-before", torch.bfloat16, {"H": 768}, ["together", "together"], 90),
    ("users-own", torch.float32, {"H": 200, "reverse": True, "lengths": True}, ["together", "together"], 80),
    ("lstm-1997", torch.float16, {"H": 300, "truncated": True, "lengths": True}, ["together", "scan"], 90),
    ("lstm", torch.float32, {"H": 40, "truncated": True, "lengths": True}, ["alone", "scan"], 80),
]


@pytest.mark.parametrize("name, low, options, modes, capability", CASES)
def test_they_compile_for_a_gpu(name, low, options, modes, capability, monkeypatch):
    chosen = []
    choose = schedule.choose
    monkeypatch.setattr(schedule, "choose", lambda *a: chosen.append(choose(*a)) or chosen[-1])
    found = launches(monkeypatch, problem(name, low, **options))
    assert [s.mode for s in chosen] == modes and len(found) == 2
    for s, launch in zip(chosen, found, strict=True):
        made = assemble(monkeypatch, launch, capability)
        ptx = made.asm["ptx"]
        assert made.asm["cubin"] and made.metadata.shared <= 163 * 1024  # what a program may have on an A100
        assert made.metadata.global_scratch_size == 0  # for which Triton would want an allocator
        assert ("maxnreg" in ptx) == (s.mode != "scan")  # else the assembler guesses who shares a multiprocessor
        assert ("mma.sync" in ptx) == (s.mode != "scan" and low != torch.float32)  # the tensor cores multiply
        assert bool(re.search(r"atom\.(global\.)?(acq_rel\.gpu|gpu.*acq_rel)", ptx)) == (s.mode == "together")
        assert made.metadata.launch_cooperative_grid == (s.mode == "together")
        assert "cp.async" not in ptx  # nothing that another program writes is read ahead of the barrier


@pytest.mark.parametrize("name, low, H, rows", [("gru", torch.float32, 512, 32), ("lstm", torch.bfloat16, 768, 64)])
def test_a_step_of_many_rows_has_registers_enough(name, low, H, rows, monkeypatch):
    # Once 11.7 KB and 0.5 KB a thread: the assembler guessed, and all groups of threads worked the whole step out.
    launch = benchmark.launches(CELLS[name](), 128, H, low, 90)[1]
    assert dict(launch.constants)["BM"] == rows
    assert benchmark.report(launch, 90).spilt <= 64


@pytest.mark.parametrize(
    "name, dtype, H, mode, capability",
    [
        ("lstm", torch.float64, 40, "alone", 90),
        ("gru", torch.float32, 33, "alone", 80),
        ("gru-reset-before", torch.float64, 40, "stepwise", 80),
    ],
)
def test_the_map_compiles_for_a_gpu(name, dtype, H, mode, capability, monkeypatch):
    found = []

    def note(text, grid, arguments, constants, how):
        found.append((text, dict(arguments), dict(constants), how._asdict()))

    p = given(name, 2, 3, 4, H, lengths=True)
    made = kernel.constants_of
    monkeypatch.setattr(kernel, "launch", note)
    monkeypatch.setattr(kernel, "constants_of", lambda low, full, _, **sizes: made(low, full, False, **sizes))
    monkeypatch.setattr(schedule, "on_chip", lambda device: schedule.ON_CHIP if mode == "alone" else 0)
    made_ready(p, dtype)[0].send_back([1, 0], p.d_sequences, want_values=True)
    first = {launch[0].name: launch for launch in found}
    assert list(first) == (["map"] if mode == "alone" else ["map_0", "map_1"])
    for launch in first.values():
        compiled = assemble(monkeypatch, launch, capability)
        assert compiled.asm["cubin"] and compiled.metadata.shared <= 163 * 1024
        assert not compiled.metadata.launch_cooperative_grid  # no row waits for another
