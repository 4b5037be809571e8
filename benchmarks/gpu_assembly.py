"""What the compiler says of the Triton kernels, without a GPU: registers, spills and shared memory over the grid.

    python -m benchmarks.gpu_assembly
    python -m benchmarks.gpu_assembly --cell rnn --dtype float32 --hidden 128 --capability 80

Every kernel that `benchmarks.gpu` would launch for a size is compiled by Triton, and its assembler (ptxas -v) reports
on it. The exit status is 1 where a kernel spills so many registers to memory that the rule would look for another.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from benchmarks.cpu_contenders import CELLS

from throughtime.cells import Cell
from throughtime.engine import triton as backend
from throughtime.engine.trace import tape_of
from throughtime.engine.triton import kernel, schedule, support
from throughtime.engine.triton.writer import Text

BS, HS = (1, 16, 128), (64, 128, 256, 512, 768, 1024)
DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}
# Multiprocessors of an H100 and an A100.
PROGRAMS = {90: 132, 80: 108}
TYPES = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16",
         torch.int32: "i32", torch.int64: "i64"}  # fmt: skip


class Launch(NamedTuple):
    """A kernel that a pass would launch on a GPU."""

    text: Text
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    options: tuple[tuple[str, Any], ...]


class Found(NamedTuple):
    """The assembler's report: registers a thread, bytes a thread spilt, bytes of shared memory a program."""

    registers: int
    spilt: int
    shared: int


@contextmanager
def recorded(capability: int) -> Iterator[list[Launch]]:
    """Within it kernels are noted, not run, as they would be chosen on a GPU; the tensors are in main memory."""
    found: list[Launch] = []
    made, rule = kernel.constants_of, schedule._choose

    def note(text, grid, arguments, constants, how):
        signature = tuple((n, f"*{TYPES[v.dtype]}" if isinstance(v := arguments[n], torch.Tensor) else "i32")
                          for n in text.params)  # fmt: skip
        found.append(Launch(text, signature, tuple(constants.items()), tuple(how._asdict().items())))
        for name, v in arguments.items():
            if isinstance(v, torch.Tensor) and name.startswith(("out", "gout", "sequence", "kept", "dz")):
                v.zero_()

    with (
        patch.object(kernel, "launch", note),
        patch.object(support, "interpreting", lambda: True),
        patch.object(kernel, "constants_of", lambda low, full, _, **sizes: made(low, full, False, **sizes)),
        patch.object(schedule, "_choose", lambda *a: rule(*a[:7], PROGRAMS[capability], schedule.ON_CHIP, True)),
    ):
        yield found


def launches(cell: Cell, B: int, H: int, dtype: torch.dtype, capability: int) -> list[Launch]:
    """The kernels of one forward and one backward pass."""
    tape, G, R = tape_of(cell), len(cell.gates), len(cell.recurrent_gates)
    x, W, U = (torch.zeros(*shape, dtype=dtype) for shape in ((2, B, 8), (G * H, 8), (R * H, H)))
    b = torch.zeros(len(tape.columns) * H, dtype=dtype)
    units, states = ([torch.zeros(*shape, dtype=dtype) for _ in names] for shape, names in
                     (((H,), cell.units), ((B, H), cell.states)))  # fmt: skip
    weights = (x, W, U, b, units, [], states, None, False)
    with recorded(capability) as found:
        sequences, finals, saved = backend.forward(tape, *weights, True)
        backend.backward(tape, *weights[:-1], sequences, saved, sequences, finals, False, False, False)
    return found


def compiled(launch: Launch, capability: int) -> Any:
    """The kernel as Triton compiles it for a compute capability such as 90."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    params = launch.text.params
    aligned = {(i,): [["tt.divisibility", 16]] for i, (_, kind) in enumerate(launch.signature) if kind[0] == "*"}
    fixed = {(len(params) + j,): dict(launch.constants)[name] for j, name in enumerate(kernel.CONSTANTS)}
    signature = dict(launch.signature) | dict.fromkeys(kernel.CONSTANTS, "constexpr")
    with patch.dict(os.environ, {support.INTERPRETER: "0"}):
        source = ASTSource(kernel.compiled(launch.text), signature=signature, constexprs=fixed, attrs=aligned)
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(launch.options))


def report(launch: Launch, capability: int) -> Found:
    """What the assembler says of a kernel."""
    import triton

    made = compiled(launch, capability)
    assembler = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "kernel.ptx")
        text.write_text(made.asm["ptx"], encoding="utf-8")
        name = f"--gpu-name=sm_{capability}{'a' * (capability >= 90)}"
        done = subprocess.run([assembler, "-v", name, text, "-o", Path(folder, "kernel.cubin")],
                              capture_output=True, text=True, check=True)  # fmt: skip
    (registers,), (spilt,) = (
        re.findall(p, done.stderr) for p in (r"Used (\d+) registers", r"(\d+) bytes spill stores")
    )
    return Found(int(registers), int(spilt), made.metadata.shared)


def main(given: Sequence[str] | None = None) -> int:
    assert __doc__
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_assembly", description=__doc__.split("\n\n")[0])
    parser.add_argument("--cell", action="append", choices=list(CELLS), help="may be repeated; rnn, lstm, gru without")
    parser.add_argument("--dtype", action="append", choices=list(DTYPES), help="may be repeated; all without it")
    parser.add_argument("--hidden", action="append", type=int, help="may be repeated; the grid's without it")
    parser.add_argument("--batch", action="append", type=int, help="may be repeated; the grid's without it")
    parser.add_argument("--capability", type=int, choices=list(PROGRAMS), default=90)
    args = parser.parse_args(given)
    print(f"compute capability {args.capability / 10}\n")
    print("| cell | dtype | H | B | pass | schedule: rows, units, depth, programs a row, warps | registers | "
          "spilt, bytes a thread | shared, KiB |\n" + "|---" * 9 + "|")  # fmt: skip
    known: dict[Launch, Found] = {}
    spilt: list[int] = []
    for name in args.cell or ["rnn", "lstm", "gru"]:
        for low in args.dtype or DTYPES:
            for H in args.hidden or HS:
                for B in args.batch or BS:
                    for launch in launches(CELLS[name](), B, H, DTYPES[low], args.capability):
                        c, how = dict(launch.constants), dict(launch.options)
                        if launch not in known:
                            known[launch] = report(launch, args.capability)
                        got = known[launch]
                        spilt.append(got.spilt)
                        plan = f"{c['BM']}, {c['BH']}, {c['BK']}/{c['SPLIT']}, {c['TILES']}, {how['num_warps']}"
                        print(f"| {name} | {low} | {H} | {B} | {launch.text.name} | {plan} | {got.registers} | "
                              f"{got.spilt} | {got.shared / 1024:.0f} |", flush=True)  # fmt: skip
    print(f"\n{sum(n > 0 for n in spilt)} of {len(spilt)} spill, the most {max(spilt)} bytes a thread")
    return max(spilt) > schedule.SPILT


if __name__ == "__main__":
    sys.exit(main())
