"""From an optimised tape to a program of the kernels: a place for every value, and the order of what is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from throughtime.engine.cpu.program import CODE, WHOLE_ROW, Instruction, Kind, Place, Program, Sizes, WholeRow
from throughtime.engine.cpu.slots import share_slots
from throughtime.engine.cpu.widths import measure
from throughtime.engine.optimise import arity
from throughtime.engine.tape import Op, Output, Tape

INPUT_KINDS = {"z": Kind.Z, "s": Kind.OLD, "n": Kind.NEW, "w": Kind.UNIT, "k": Kind.KEPT, "y": Kind.DY, "d": Kind.DS}
# Written once for all rows and never overwritten in the step, so that whole rows of them can be read later.
LASTING = (Kind.STEP, Kind.CHUNK, Kind.NEW, Kind.KEPT, Kind.DZ)


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


class _Lowering:
    """Values are numbered as on the tape. place: where each stands; copies: what must stand somewhere else too;
    sums: what is summed over rows, as (per-unit weight, value)."""

    def __init__(self, tape: Tape, sizes: Sizes, columns: Sequence[str], states: Sequence[str], kept: Sequence[int]):
        self.tape, self.n = tape, len(tape.inputs)
        self.width, self.stage = measure(tape, sizes, states, kept)
        self.matrices = tape.names("m")
        self.numbers = {"z": list(columns), "s": list(states), "w": list(tape.names("w"))}
        self.out = Program(kept_widths=list(kept), stages=1 + max(self.stage, default=0))
        self.place: dict[int, Place] = {
            v: (INPUT_KINDS[i.kind], self._index(i.kind, i.name)) for v, i in enumerate(tape.inputs) if i.kind != "m"
        }
        self.copies: list[tuple[int, Place]] = []
        self.sums: list[tuple[int, int]] = []
        # Where each place of an input is read: the gradient of an old state takes the place of that of the new one.
        self.read_at: dict[Place, list[int]] = {}
        for i, op in enumerate(tape.ops):
            for a in op.args:
                if a in self.place:
                    self.read_at.setdefault(self.place[a], []).append(i)

    def _index(self, kind: str, name: str) -> int:
        return int(name) if kind == "k" else self.numbers[kind if kind in "zw" else "s"].index(name)

    def _name(self, v: int) -> str:
        return self.tape.ops[v - self.n].name

    def run(self) -> Program:
        self._place_outputs()
        self._place_lasting()
        joined = self._products_only_summed()  # the product and the sum over rows are done as one
        instructions = self._whole_rows_and_instructions(joined) + self._sums(joined) + self._copies()
        # Stage by stage; within one, values of one width together, which keeps the order that they had.
        in_order = sorted(instructions, key=lambda q: (q.stage, q.width))
        self.out.instructions, self.out.temps = share_slots(in_order)
        return self.out

    # --- places ---

    def _place_outputs(self) -> None:
        # Every output has a place of its own to be written to: by the operation itself, else by a copy.
        backward = any(i.kind == "d" for i in self.tape.inputs)
        for o in self.tape.outputs:
            v = o.values[0]
            if o.kind == "w":
                self.sums.append((self._index("w", o.name), v))
            elif o.kind == "m":
                matrix = self.matrices.index(o.name)
                for left, right in zip(o.values[::2], o.values[1::2], strict=True):
                    self.out.pairs.append((matrix, self._factor(left), self._factor(right)))
            else:
                self._write_to(v, self._output_place(o, backward))

    def _output_place(self, o: Output, backward: bool) -> Place:
        index = self._index(o.kind, o.name)
        if o.kind == "k":
            assert index == len(self.out.kept_widths)
            self.out.kept_widths.append(self.width[o.values[0]])
            return (Kind.KEPT, index)
        if o.kind == "z":
            self.out.dz_written |= 1 << index
            return (Kind.DZ, index)
        self.out.ds_written |= 1 << index
        return (Kind.DS if backward else Kind.NEW, index)

    def _write_to(self, v: int, place: Place) -> None:
        if v not in self.place and (place[0] != Kind.DS or self._read_before(v, place)):
            self.place[v] = place
        else:
            self.copies.append((v, place))

    def _read_before(self, v: int, place: Place) -> bool:
        # Operations run stage by stage, so that one later on the tape may run earlier, and the other way round.
        readers = self.read_at.get(place, [])
        in_time = all(i <= v - self.n and self.stage[self.n + i] <= self.stage[v] for i in readers)
        return in_time and self._name(v) not in WHOLE_ROW

    def _factor(self, v: int) -> Place:
        """Where a factor of a matrix's gradient stands for a whole chunk of steps."""
        for place in [self.place.get(v), *(p for w, p in self.copies if w == v)]:
            if place is not None and place[0] in (Kind.CHUNK, Kind.DZ):
                return place
        place = (Kind.CHUNK, len(self.out.chunk_widths))
        self.out.chunk_widths.append(self.width[v])
        self._write_to(v, place)
        return place

    def _place_lasting(self) -> None:
        # What is read in a later stage, or made by rows, must outlive the tile.
        readers = [(a, self.stage[self.n + i]) for i, op in enumerate(self.tape.ops) for a in op.args]
        readers += [(v, self._copy_stage(v, p)) for v, p in self.copies]
        for v, stage in readers:
            late = v >= self.n and v not in self.place and (stage > self.stage[v] or self._name(v) in WHOLE_ROW)
            if late:
                self.place[v] = self._new_step(v)
        self.source: dict[int, Place] = {}  # what a product reads by rows
        for op in self.tape.ops:
            a = op.args[0]
            if op.name not in WHOLE_ROW or a in self.source:
                continue
            if a in self.place and self.place[a][0] in LASTING:
                self.source[a] = self.place[a]
            else:
                self.source[a] = self._new_step(a)
                self.copies.append((a, self.source[a]))

    def _new_step(self, v: int) -> Place:
        self.out.step_widths.append(self.width[v])
        return (Kind.STEP, len(self.out.step_widths) - 1)

    def _copy_stage(self, v: int, place: Place) -> int:
        readers = self.read_at.get(place, []) if place[0] == Kind.DS else []
        return max([self.stage[v], *(self.stage[self.n + i] for i in readers)])

    # --- what is done ---

    def _whole_rows_and_instructions(self, joined: set[int]) -> list[Instruction]:
        plain = []
        for i, op in enumerate(self.tape.ops):
            v, a = self.n + i, op.args[0]
            if v in joined:
                continue
            if op.name in WHOLE_ROW:
                matrix = -1 if op.name == "mean" else self.matrices.index(self.tape.inputs[op.args[1]].name)
                if v not in self.place:  # only summed over rows
                    self.place[v] = self._new_step(v)
                rows = (self.source[a], self.width[a], self.place[v], self.width[v])
                self.out.whole_rows.append(WholeRow(self.stage[v], matrix, op.name == "linear", *rows))
                continue
            self.place.setdefault(v, (Kind.TEMP, v))
            plain.append(self._instruction(op.name, self.place[v], op.args, v, op.consts))
        return plain

    def _products_only_summed(self) -> set[int]:
        uses = Counter(a for op in self.tape.ops for a in op.args)
        uses.update(v for v, _ in self.copies)
        return {v for _, v in self.sums if v not in self.place and not uses[v] and self._name(v) == "mul"}

    def _sums(self, joined: set[int]) -> list[Instruction]:
        made = []
        for k, v in self.sums:
            name, args = ("sum_mul", self.tape.ops[v - self.n].args) if v in joined else ("sum", (v,))
            made.append(self._instruction(name, (Kind.DUNIT, k), args, v))
        return made

    def _copies(self) -> list[Instruction]:
        # Those into the gradients of the old states come last: they overwrite what the others read.
        ordered = sorted(self.copies, key=lambda c: c[1][0] == Kind.DS)
        return [self._instruction("copy", p, (v,), v)._replace(stage=self._copy_stage(v, p)) for v, p in ordered]

    def _instruction(
        self, name: str, d: Place, args: Sequence[int], v: int, consts: tuple[float, ...] = ()
    ) -> Instruction:
        return Instruction(CODE[name], d, tuple(self.place[a] for a in args), consts, self.width[v], self.stage[v])
