"""The parts of a kernel's text that all passes share: arguments, addresses, element-wise operations."""

from __future__ import annotations

from dataclasses import dataclass

from throughtime.engine.tape import Tape
from throughtime.engine.triton.analysis import Analysis
from throughtime.engine.triton.expressions import lines_of


@dataclass(frozen=True)
class Form:
    """What the text of a kernel depends on beside the tape.

    mode:      "alone": one program has all units of its rows, and no program waits for another;
               "together": programs share the units of a row and meet at a barrier; "stepwise": a launch for each part
               of a step takes the barrier's place.
    chunks:    into how many parts the sums over H and over P units are cut; 1 where a program has them all.
    held:      whether the weights are read once, before the steps, or anew at each step.
    truncated: whether the product with U passes no gradient.
    split:     into how many parts each sum is cut besides, one for each group of threads; for tiles of few units.
    parts:     in how many parts, one after the other, the rows of a program are multiplied.
    sums:      into how many sums the products with U are added up on the way back: a thread has all of them at a time,
               and one alone, of few rows, would wait for itself.
    """

    mode: str
    lengths: bool
    reverse: bool
    double: bool
    square: bool
    chunks: tuple[int, int] = (1, 1)
    held: bool = True
    truncated: bool = False
    split: int = 1
    parts: int = 1
    sums: int = 2

    @property
    def first(self) -> str:
        """The width of the first state."""
        return "H" if self.square else "P"


@dataclass(frozen=True)
class Text:
    """The source of one kernel: its name, its arguments in order, and its text."""

    name: str
    params: tuple[str, ...]
    source: str


CONSTANTS = ("H", "P", "BM", "BH", "BP", "BK", "SPLIT", "CT", "LOW", "DOT", "PRECISION", "TILES")


class Writer:
    """Collects the lines and the arguments of one kernel."""

    def __init__(self, form: Form, analysis: Analysis):
        self.form, self.analysis, self.tape = form, analysis, analysis.tape
        self.params: list[str] = []
        self.lines: list[str] = []
        self.depth = 1
        self.named = 0
        self.name: dict[int, str] = {}

    # --- text ---------------------------------------------------------------------------------------------------

    def put(self, *lines: str) -> None:
        self.lines += ["    " * self.depth + line for line in lines]

    def fresh(self, name: str) -> str:
        """A name that nothing else has: within a loop Triton wants one type of each."""
        self.named += 1
        return f"{name}_{self.named}"

    def param(self, name: str) -> str:
        if name not in self.params:
            self.params.append(name)
        return name

    def text(self, name: str) -> Text:
        constants = ", ".join(f"{c}: tl.constexpr" for c in CONSTANTS)
        head = f"def {name}({', '.join(self.params)}, {constants}):"
        return Text(name, tuple(self.params), "\n".join([head, *self.lines, ""]))

    # --- places -------------------------------------------------------------------------------------------------

    def prologue(self) -> None:
        """Which rows and units are this program's. Rows are counted in 64 bits: T * B * H may pass 2^31."""
        for name in ("T", "B", "begin", "end", "start"):
            self.param(name)
        self.put(
            "pm = tl.program_id(0) + start",
            "pn = tl.program_id(1)",
            "B64 = tl.cast(B, tl.int64)",
            "r = (pm * BM + tl.arange(0, BM)).to(tl.int64)",
            "rm = r < B",
        )
        for p in range(self.form.parts if self.form.parts > 1 else 0):
            n = f"(BM // {self.form.parts})"
            self.put(f"r{p} = (pm * BM + {p} * {n} + tl.arange(0, {n})).to(tl.int64)", f"rm{p} = r{p} < B")
        for w in "H" if self.form.square else "HP":
            self.put(f"o{w} = pn * B{w} + tl.arange(0, B{w})", f"m{w} = o{w} < {w}")
            self.put(f"k{w} = rm[:, None] & m{w}[None, :]")
        if self.form.mode != "alone":
            self.put("oK = tl.arange(0, BK)")
            if self.form.split > 1:  # the same terms as a table, a row for each group of threads
                self.put("oS = (tl.arange(0, SPLIT) * (BK // SPLIT))[:, None] + tl.arange(0, BK // SPLIT)[None, :]")
        if self.form.lengths:
            self.param("lengths")
            self.put("length = tl.load(lengths + r, mask=rm, other=0)")
        for i in [i for i, inp in enumerate(self.tape.inputs) if inp.kind == "w"]:
            j = self.tape.names("w").index(self.tape.inputs[i].name)
            pointer = self.param(f"unit{j}")
            self.name[i] = f"w{j}"
            self.put(f"w{j} = tl.load({pointer} + oH, mask=mH, other=0).to(CT)[None, :]")
        if self.form.mode == "together":
            self.param("arrivals")
            self.put("met = 0")

    def clock(self, step: str, t: str = "t", row: str = "row") -> None:
        """The time `t` of a step counted from 0 in the order of the pass, and the rows of [T * B, .] it has."""
        self.put(f"{t} = {self.time_of(step)}", f"{row} = tl.cast({t}, tl.int64) * B64 + r")

    def time_of(self, step: str) -> str:
        raise AssertionError("the pass says in which order it goes through time")

    def at(self, pointer: str, row: str, w: str, extra: str = "") -> str:
        """The address of this program's units of width w in a row of a table [., width]."""
        width, offset = (extra.split("@")) if extra else (w, "0")
        return f"{pointer} + ({row}[:, None] * {width} + {offset} + o{w}[None, :])"

    def load(self, target: str, address: str, mask: str, cast: bool = True) -> None:
        self.put(f"{target} = tl.load({address}, mask={mask}, other=0){'.to(CT)' if cast else ''}")

    def store(self, address: str, value: str, mask: str) -> None:
        self.put(f"tl.store({address}, {value}, mask={mask})")

    # --- operations ---------------------------------------------------------------------------------------------

    def operations(self, stage: int) -> None:
        """The element-wise operations of a stage."""
        for v in self.analysis.elementwise(stage):
            op = self.analysis.op(v)
            self.name[v] = f"v{v}"
            self.put(*lines_of(op, f"v{v}", [self.name[a] for a in op.args], self.form.double))

    def shown(self, value: str) -> str:
        """The value within a sequence's length, 0 beyond it."""
        return f"tl.where(valid, {value}, 0.0)" if self.form.lengths else value


def used(tape: Tape, kind: str) -> list[tuple[int, int]]:
    """The inputs of one kind that anything reads: (value number, index among the kind)."""
    read = {a for op in tape.ops for a in op.args} | {v for o in tape.outputs for v in o.values}
    names = tape.names(kind)
    return [(i, names.index(p.name)) for i, p in enumerate(tape.inputs) if p.kind == kind and i in read]
