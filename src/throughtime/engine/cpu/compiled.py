"""A tape made ready for the kernels: its programs as the arrays of the C interface, and the order of its columns."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from throughtime.cells import Column
from throughtime.engine.cpu.library import TapeInstruction, TapePlace, TapeProgram, TapeSweep, TapeWholeRow
from throughtime.engine.cpu.lower import lower
from throughtime.engine.cpu.program import Place, Program, Sizes
from throughtime.engine.optimise import inference, split
from throughtime.engine.tape import Tape
from throughtime.errors import BackendError

# What the kernels have room for: values that stand somewhere, states, net inputs.
MOST_PLACES, MOST_NAMES = 160, 62


@dataclass(frozen=True)
class Columns:
    """A cell's columns in the kernels' order: those with a part from x first, those with a part from h last."""

    order: tuple[int, ...]
    x_blocks: tuple[int, ...]
    h_blocks: tuple[int, ...]
    nx: int
    h0: int
    nh: int


@lru_cache(maxsize=256)
def arrange(columns: tuple[Column, ...]) -> Columns:
    """The kernels' order of the columns, and the row blocks of W and U that belong to each, -1 for none."""

    def rank(k: int) -> int:
        return 0 if columns[k].h is None else 1 if columns[k].x is not None else 2

    order = tuple(sorted(range(len(columns)), key=rank))
    xs = [-1 if (x := columns[k].x) is None else x for k in order]
    hs = [-1 if (h := columns[k].h) is None else h for k in order]
    nh = sum(h >= 0 for h in hs)
    return Columns(order, tuple(xs), tuple(hs), sum(x >= 0 for x in xs), len(order) - nh, nh)


class Compiled:
    """A program as the arrays of the C interface, which it keeps alive."""

    def __init__(self, program: Program):
        self.program = program
        places: dict[Place, int] = {}

        def number(p: Place) -> int:
            return places.setdefault(p, len(places))

        instructions: list[TapeInstruction] = []
        sweeps: list[list[int]] = []
        for q in program.instructions:
            args = [number(a) for a in q.args]
            args += [args[0]] * (3 - len(args))
            consts = [*q.consts, 0.0, 0.0][:2]
            if sweeps and sweeps[-1][:2] == [q.stage, q.width]:
                sweeps[-1][3] += 1
            else:
                sweeps.append([q.stage, q.width, len(instructions), 1])
            instructions.append(TapeInstruction(q.code, number(q.d), *args, *consts))
        whole = [
            TapeWholeRow(w.stage, w.matrix, w.turned, number(w.source), w.source_width, number(w.d), w.width)
            for w in program.whole_rows
        ]
        if len(places) > MOST_PLACES:
            raise BackendError(
                f"the cell's step is too long for the CPU kernels: {len(places)} values, "
                f'they have room for {MOST_PLACES}; choose backend="torch"'
            )
        pairs = [v for m, left, right in program.pairs for v in (m, number(left), number(right))]
        offsets, total = [], 0
        for w in program.kept_widths:
            offsets.append(total)
            total += w
        self.kept_row = total
        self.arrays = (
            (TapePlace * max(1, len(places)))(*(TapePlace(int(k), i) for k, i in places)),
            (TapeInstruction * max(1, len(instructions)))(*instructions),
            (TapeSweep * max(1, len(sweeps)))(*(TapeSweep(*s) for s in sweeps)),
            (TapeWholeRow * max(1, len(whole)))(*whole),
            ints(program.step_widths), ints(program.chunk_widths), ints(offsets),
        )  # fmt: skip
        self.pairs = ints(pairs)
        self.n_pairs = len(program.pairs)
        self.struct = TapeProgram(
            *(ctypes.addressof(a) for a in self.arrays), len(places), len(sweeps), len(whole), len(program.step_widths),
            len(program.chunk_widths), program.temps, program.stages, program.ds_written, program.dz_written,
        )  # fmt: skip
        self.address = ctypes.addressof(self.struct)


@dataclass(frozen=True)
class Programs:
    forward: Compiled
    backward: Compiled | None


@lru_cache(maxsize=512)
def compiled(tape: Tape, sizes: Sizes, shown: tuple[bool, ...] | None) -> Programs:
    """The programs of a step; shown: None for inference, else see `optimise.split`."""
    names = [tape.columns[k].name for k in arrange(tape.columns).order]
    states = tape.names("s")
    if shown is None:
        return Programs(Compiled(lower(inference(tape), sizes, names, states)), None)
    cut = split(tape, shown)
    forward_program = lower(cut.forward, sizes, names, states)
    back = lower(cut.backward, sizes, names, states, forward_program.kept_widths)
    return Programs(Compiled(forward_program), Compiled(back))


def ints(values: Sequence[int]) -> ctypes.Array:
    """The numbers as the kernels take them."""
    return (ctypes.c_int64 * max(1, len(values)))(*values)


def sizes_of(tape: Tape, H: int, P: int, matrices: Sequence[tuple[int, int]]) -> Sizes:
    """The widths of a tape's values: the first state has P units, the others have H."""
    return Sizes(H, (P,) + (H,) * (len(tape.names("s")) - 1), tuple(matrices))


def everything(tape: Tape) -> tuple[bool, ...]:
    """As if a gradient entered at the outputs of every state: what the forward pass keeps must serve any loss."""
    return (True,) * len(tape.names("s"))
