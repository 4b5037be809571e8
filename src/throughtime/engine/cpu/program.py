"""From an optimised tape to the tables the kernels read: stages, sweeps, and a place for every value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from throughtime.engine.optimise import arity
from throughtime.engine.tape import Op, Output, Tape
from throughtime.errors import CellError

# The codes of the kernels, in the order of ops.h.
CODES = (
    "affine", "add", "sub", "mul", "div", "reciprocal", "power", "sqrt", "exp", "log", "sin", "cos", "erf",
    "abs", "sign", "tanh", "sigmoid", "relu", "softplus", "maximum", "minimum", "clamp", "heaviside", "select",
    "dsigmoid", "dtanh", "copy", "fma", "fms", "fnma", "lerp", "tanh_fma", "sigmoid_fma", "mul_tanh",
    "mul_dsigmoid", "mul_dtanh", "dtanh_add", "add_dtanh", "sum", "sum_mul",
)  # fmt: skip
CODE = {name: k for k, name in enumerate(CODES)}
WHOLE_ROW = ("linear", "linear_t", "mean")


class Kind(IntEnum):
    """Where a value stands; the enum of interface.h."""

    TEMP = 0
    Z = 1
    OLD = 2
    NEW = 3
    UNIT = 4
    KEPT = 5
    DY = 6
    DS = 7
    DZ = 8
    DUNIT = 9
    STEP = 10
    CHUNK = 11


Place = tuple[Kind, int]
INPUT_KINDS = {"z": Kind.Z, "s": Kind.OLD, "n": Kind.NEW, "w": Kind.UNIT, "k": Kind.KEPT, "y": Kind.DY, "d": Kind.DS}
# Written once for all rows and never overwritten in the step, so that whole rows of them can be read later.
LASTING = (Kind.STEP, Kind.CHUNK, Kind.NEW, Kind.KEPT, Kind.DZ)


@dataclass(frozen=True)
class Instruction:
    code: int
    d: Place
    args: tuple[Place, ...]
    consts: tuple[float, ...]
    width: int
    stage: int


@dataclass(frozen=True)
class WholeRow:
    """A product with a matrix or (matrix < 0) a mean over units, at the entry of a stage."""

    stage: int
    matrix: int
    turned: bool
    source: Place
    source_width: int
    d: Place
    width: int


@dataclass
class Program:
    """An optimised tape with a place for each value."""

    instructions: list[Instruction] = field(default_factory=list)
    whole_rows: list[WholeRow] = field(default_factory=list)
    step_widths: list[int] = field(default_factory=list)
    chunk_widths: list[int] = field(default_factory=list)
    kept_widths: list[int] = field(default_factory=list)
    pairs: list[tuple[int, Place, Place]] = field(default_factory=list)  # matrix, left, right
    stages: int = 1
    temps: int = 0
    ds_written: int = 0
    dz_written: int = 0


@dataclass(frozen=True)
class Sizes:
    """What widths follow from: H, the width of each state, and the shape of each matrix."""

    H: int
    states: tuple[int, ...]
    matrices: tuple[tuple[int, int], ...]


class _Lowering:
    """Gives every value of a tape a stage and a place. names: the cell's columns in the engine's order, states, ..."""

    def __init__(self, tape: Tape, sizes: Sizes, columns: Sequence[str], states: Sequence[str], kept: Sequence[int]):
        self.tape, self.sizes, self.n = tape, sizes, len(tape.inputs)
        self.columns, self.states = list(columns), list(states)
        self.units, self.matrices = list(tape.names("w")), list(tape.names("m"))
        self.out = Program(kept_widths=list(kept))
        self.width = [self._input_width(i.kind, i.name) for i in tape.inputs]
        self.stage = [0] * self.n
        for op in tape.ops:
            self._measure(op)
        self.out.stages = 1 + max(self.stage, default=0)
        self.place: dict[int, Place] = {}
        for v, inp in enumerate(tape.inputs):
            if inp.kind != "m":
                self.place[v] = (INPUT_KINDS[inp.kind], self._index(inp.kind, inp.name))

    def _index(self, kind: str, name: str) -> int:
        if kind == "z":
            return self.columns.index(name)
        if kind == "w":
            return self.units.index(name)
        return int(name) if kind == "k" else self.states.index(name)

    def _input_width(self, kind: str, name: str) -> int:
        if kind in "snyd":
            return self.sizes.states[self.states.index(name)]
        return self.out.kept_widths[int(name)] if kind == "k" else self.sizes.H if kind != "m" else 0

    def _measure(self, op) -> None:
        values = [a for a in op.args if self.width[a]]
        widths = {self.width[a] for a in values}
        stage = max(self.stage[a] for a in values)
        if op.name in ("linear", "linear_t"):
            rows, columns = self.sizes.matrices[op.args[1] - self.tape.inputs.index(self._first_matrix())]
            want, width = (columns, rows) if op.name == "linear" else (rows, columns)
            if widths != {want}:
                raise CellError(f"a product needs {want} units, its matrix is [{rows}, {columns}]; came {widths.pop()}")
            self.width.append(width)
        else:
            if len(widths) != 1:
                raise CellError(f"{op.name} joins values of {' and '.join(map(str, sorted(widths)))} units")
            self.width.append(widths.pop())
        self.stage.append(stage + (op.name in WHOLE_ROW))

    def _first_matrix(self):
        return next(i for i in self.tape.inputs if i.kind == "m")

    def run(self) -> Program:
        self._outputs()
        self._lasting()
        self._emit()
        self._temporaries()
        return self.out

    def _outputs(self) -> None:
        # Every output has a place of its own to be written to: by the operation itself, else by a copy.
        self.copies: list[tuple[int, Place]] = []
        self.sums: list[tuple[int, int]] = []
        last_read = {}
        for i, op in enumerate(self.tape.ops):
            for a in op.args:
                if a < self.n and self.tape.inputs[a].kind == "d":
                    last_read[self.place[a]] = i
        backward = any(i.kind == "d" for i in self.tape.inputs)
        for o in self.tape.outputs:
            v = o.values[0]
            if o.kind == "w":
                self.sums.append((self.units.index(o.name), v))
                continue
            if o.kind == "m":
                matrix = self.matrices.index(o.name)
                for left, right in zip(o.values[::2], o.values[1::2], strict=True):
                    self.out.pairs.append((matrix, self._factor(left), self._factor(right)))
                continue
            if o.kind == "k":
                assert int(o.name) == len(self.out.kept_widths)
                self.out.kept_widths.append(self.width[v])
                place = (Kind.KEPT, int(o.name))
            elif o.kind == "z":
                place = (Kind.DZ, self.columns.index(o.name))
                self.out.dz_written |= 1 << place[1]
            else:
                place = (Kind.DS if backward else Kind.NEW, self.states.index(o.name))
                self.out.ds_written |= 1 << place[1]
            # The gradient of the old state takes the place of that of the new one: not before it was last read.
            free = place[0] != Kind.DS or (last_read.get(place, -1) <= v - self.n and self._last_in_stage(v, place))
            if v not in self.place and free:
                self.place[v] = place
            else:
                self.copies.append((v, place))

    def _last_in_stage(self, v: int, place: Place) -> bool:
        # Operations run stage by stage, so that one later on the tape may run earlier, and the other way round.
        readers = [
            i for i, op in enumerate(self.tape.ops) if any(self.place.get(a) == place for a in op.args if a < self.n)
        ]
        return (
            all(self.stage[self.n + i] <= self.stage[v] for i in readers)
            and self.tape.ops[v - self.n].name not in WHOLE_ROW
        )

    def _factor(self, v: int) -> Place:
        if v in self.place and self.place[v][0] in (Kind.CHUNK, Kind.DZ):
            return self.place[v]
        for w, place in self.copies:
            if w == v and place[0] in (Kind.CHUNK, Kind.DZ):
                return place
        place = (Kind.CHUNK, len(self.out.chunk_widths))
        self.out.chunk_widths.append(self.width[v])
        if v not in self.place:
            self.place[v] = place
        else:
            self.copies.append((v, place))
        return place

    def _new_step(self, v: int) -> Place:
        self.out.step_widths.append(self.width[v])
        return (Kind.STEP, len(self.out.step_widths) - 1)

    def _lasting(self) -> None:
        # What is read in a later stage, or by rows, must outlive the tile.
        self.source: dict[int, Place] = {}
        readers: list[tuple[int, int]] = [
            (a, self.stage[self.n + i]) for i, op in enumerate(self.tape.ops) for a in op.args
        ]
        readers += [(v, self._copy_stage(v, p)) for v, p in self.copies]
        for v, stage in readers:
            if (
                v >= self.n
                and v not in self.place
                and (stage > self.stage[v] or self.tape.ops[v - self.n].name in WHOLE_ROW)
            ):
                self.place[v] = self._new_step(v)
        for op in self.tape.ops:
            a = op.args[0]
            if op.name not in WHOLE_ROW or a in self.source:
                continue
            if a in self.place and self.place[a][0] in LASTING:
                self.source[a] = self.place[a]
            else:
                self.source[a] = self._new_step(a)
                self.copies.append((a, self.source[a]))

    def _copy_stage(self, v: int, place: Place) -> int:
        stage = self.stage[v]
        if place[0] == Kind.DS:
            readers = [
                i
                for i, op in enumerate(self.tape.ops)
                if any(self.place.get(a) == place for a in op.args if a < self.n)
            ]
            stage = max([stage, *(self.stage[self.n + i] for i in readers)])
        return stage

    def _emit(self) -> None:
        where = self.place
        plain = []
        uses: dict[int, int] = {}
        for op in self.tape.ops:
            for a in op.args:
                uses[a] = uses.get(a, 0) + 1
        summed = {v for _, v in self.sums}
        joined = set()  # products that only a sum reads
        for v in summed:
            if v >= self.n and v not in where and not uses.get(v) and self.tape.ops[v - self.n].name == "mul":
                joined.add(v)
        for i, op in enumerate(self.tape.ops):
            v = self.n + i
            if v in joined:
                continue
            if op.name in WHOLE_ROW:
                matrix = -1 if op.name == "mean" else self.matrices.index(self.tape.inputs[op.args[1]].name)
                a = op.args[0]
                if v not in where:  # only summed over rows
                    where[v] = self._new_step(v)
                self.out.whole_rows.append(
                    WholeRow(
                        self.stage[v],
                        matrix,
                        op.name == "linear",
                        self.source[a],
                        self.width[a],
                        where[v],
                        self.width[v],
                    )
                )
                continue
            if v not in where:
                where[v] = (Kind.TEMP, v)
            plain.append(Instruction(
                CODE[op.name], where[v], tuple(where[a] for a in op.args), op.consts, self.width[v], self.stage[v]
            ))  # fmt: skip
        for k, v in self.sums:
            if v in joined:
                a, b = self.tape.ops[v - self.n].args
                made = Instruction(
                    CODE["sum_mul"], (Kind.DUNIT, k), (where[a], where[b]), (), self.width[v], self.stage[v]
                )
            else:
                made = Instruction(CODE["sum"], (Kind.DUNIT, k), (where[v],), (), self.width[v], self.stage[v])
            plain.append(made)
        # The copies into the gradients of the old states come last: they overwrite what the others read.
        for v, place in sorted(self.copies, key=lambda c: c[1][0] == Kind.DS):
            plain.append(Instruction(CODE["copy"], place, (where[v],), (), self.width[v], self._copy_stage(v, place)))
        self.out.instructions = sorted(plain, key=lambda q: (q.stage, q.width))

    def _temporaries(self) -> None:
        # Temporaries share slots once they are read no more.
        last: dict[Place, int] = {}
        for i, q in enumerate(self.out.instructions):
            for p in (*q.args, q.d):
                if p[0] == Kind.TEMP:
                    last[p] = i
        slot: dict[Place, int] = {}
        idle: list[int] = []
        done = []
        for i, q in enumerate(self.out.instructions):
            args = tuple((Kind.TEMP, slot[p]) if p[0] == Kind.TEMP else p for p in q.args)
            for p in set(q.args):
                if p[0] == Kind.TEMP and last[p] == i:
                    idle.append(slot[p])
            d = q.d
            if d[0] == Kind.TEMP:
                if not idle:
                    idle.append(self.out.temps)
                    self.out.temps += 1
                slot[d] = idle.pop()
                d = (Kind.TEMP, slot[d])
                if last[q.d] == i:
                    idle.append(slot[q.d])
            done.append(Instruction(q.code, d, args, q.consts, q.width, q.stage))
        self.out.instructions = done


def lower(tape: Tape, sizes: Sizes, columns: Sequence[str], states: Sequence[str], kept: Sequence[int] = ()) -> Program:
    """The program of an optimised tape.

    columns: the names of the net inputs in the kernels' order; states: the names of the states; kept: the widths of
    what the forward pass kept, for a backward tape. Raises CellError where widths do not fit each other.
    """
    for op in tape.ops:
        assert arity(op.name) == (len(op.args), len(op.consts))
    return _Lowering(_with_copies(tape), sizes, columns, states, kept).run()


def _with_copies(tape: Tape) -> Tape:
    # An input that is an output as it is, or that a product reads by rows, is copied before anything overwrites it.
    n = len(tape.inputs)
    taken = {v for o in tape.outputs for v in o.values if v < n}
    taken |= {op.args[0] for op in tape.ops if op.name in WHOLE_ROW and op.args[0] < n}
    copy_of = {v: n + k for k, v in enumerate(sorted(taken))}

    def moved(v: int) -> int:
        return v if v < n else v + len(copy_of)

    ops = [Op("copy", (v,)) for v in copy_of]
    for op in tape.ops:
        args = [moved(a) for a in op.args]
        if op.name in WHOLE_ROW:
            args[0] = copy_of.get(args[0], args[0])
        ops.append(Op(op.name, tuple(args), op.consts))
    outputs = tuple(Output(o.kind, o.name, tuple(copy_of.get(v, moved(v)) for v in o.values)) for o in tape.outputs)
    return Tape(tape.columns, tape.inputs, tuple(ops), outputs)
