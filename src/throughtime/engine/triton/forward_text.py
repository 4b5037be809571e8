"""The forward pass as the text of Triton kernels: one for the whole pass, or one for each part of a step."""

from __future__ import annotations

from functools import lru_cache

from throughtime.engine.tape import Tape
from throughtime.engine.triton.analysis import Analysis
from throughtime.engine.triton.exchange import Exchange
from throughtime.engine.triton.products import Weight
from throughtime.engine.triton.writer import Form, Text, used

RECURRENT = "shown"  # the table of h_{t-1} in the products' dtype, where programs share its units


class _Forward(Exchange):
    def __init__(self, form: Form, analysis: Analysis, kept: tuple[tuple[int, str], ...], row: str):
        super().__init__(form, analysis)
        self.kept, self.row = kept, row
        self.recurrent = [(k, c.h) for k, c in enumerate(self.tape.columns) if c.h is not None]
        self.S = len(self.tape.names("s"))
        self.width = [form.first] + ["H"] * (self.S - 1)
        self.state = {j: i for i, j in _states(self.tape)}

    def time_of(self, step: str) -> str:
        return f"T - 1 - ({step})" if self.form.reverse else step

    def kernel(self, name: str, phase: int | None) -> Text:
        """The kernel of one phase of a step, or, without one, of all steps."""
        self.prologue()
        stages = range(self.analysis.n_stages) if phase is None else [phase]
        x_columns = {k: c.x for k, c in enumerate(self.tape.columns) if c.x is not None}
        read = {j for _, j in used(self.tape, "z")}
        columns = sorted(read if phase is None else read & self.read_in(phase, "z"))
        for k in columns:
            self.param("bias")
            self.load(f"b{k}", f"bias + {k} * H + oH", "mH")
            self.put(f"b{k} = b{k}[None, :]")
        matrices = [m for m in self.own_matrices() if phase is None or self.needs(m, phase)]
        for m in matrices:
            self.declare(m)
        products: list[tuple[str, Weight]] = []
        if self.recurrent and 0 in stages:
            for k, h in self.recurrent:
                if k in read:
                    u = Weight(f"u{k}", "U", f"{h} * H * P" if not self.form.square else f"{h} * H * H", True,
                               self.form.first, "H")  # fmt: skip
                    products.append((f"h{k}", self.declare(u)))
        for j in range(self.S):
            self.load(f"s{j}", self.at(self.param(f"in{j}"), "r", self.width[j]), f"k{self.width[j]}")
            if j in self.state:
                self.name[self.state[j]] = f"s{j}"
        loop = phase is None
        xs = [k for k in columns if k in x_columns]
        if loop:
            self._read_x(xs, x_columns, "begin", "begin < end")
            self.put("for step in range(begin, end):")
            self.depth += 1
        else:
            self.put("step = begin")
        self.clock("step")
        if loop:
            for k in xs:
                self.put(f"x{k} = q{k}")
            self._read_x(xs, x_columns, "step + 1", "step + 1 < end")
        else:
            self._read_x(xs, x_columns, "step", "step < end")
            for k in xs:
                self.put(f"x{k} = q{k}")
        if 0 in stages and products:
            rows = "" if self.form.mode == "alone" else "({r} + ((step + 1) % 2) * B64)"
            source = "s0" if self.form.mode == "alone" else self.param(RECURRENT)
            self.products(source, products, rows, f"{self.form.first}@0")
        elif self.recurrent and phase:
            for k, _ in self.recurrent:
                if k in columns:
                    self.load(f"h{k}", self.at(self.param(f"product{k}"), "r", "H"), "kH")
        for i, k in used(self.tape, "z"):
            if k in columns:
                terms = [f"x{k}"] * (k in x_columns) + [f"b{k}"] + [f"h{k}"] * (k in dict(self.recurrent))
                self.put(f"z{k} = {' + '.join(terms)}")
                self.name[i] = f"z{k}"
        for stage in stages:
            self._stage(stage, matrices, phase)
        if phase is None or phase == self.analysis.n_stages - 1:
            self._finish(phase)
        if loop:
            self.depth -= 1
            for j in range(self.S):
                self.store(self.at(self.param(f"out{j}"), "r", self.width[j]), f"s{j}", f"k{self.width[j]}")
        return self.text(name)

    def _read_x(self, xs: list[int], blocks: dict[int, int], step: str, there: str) -> None:
        # One step ahead of its use: main memory answers while the step before is computed.
        if not xs:
            return
        self.clock(step, "t_next", "row_next")
        for k in xs:
            at = self.at(self.param("x"), "row_next", "H", f"({self.row} * H)@{blocks[k]} * H")
            self.load(f"q{k}", at, f"kH & ({there})")

    def _stage(self, stage: int, matrices: list[Weight], phase: int | None) -> None:
        if phase is not None:
            self.take_crossing(stage)
        self.whole_rows(stage, matrices)
        self.operations(stage)
        if stage == self.analysis.n_stages - 1:
            return
        self.hand_out(stage + 1)
        if phase is not None:
            self.leave_crossing(stage)
            if stage == 0:
                later = set().union(*(self.read_in(p, "z") for p in range(1, self.analysis.n_stages)))
                for k, _ in self.recurrent:
                    if k in later:
                        self.store(self.at(self.param(f"product{k}"), "r", "H"), f"h{k}", "kH")
        self.barrier()

    def _finish(self, phase: int | None) -> None:
        """New states, what is shown of them, what is kept."""
        if self.form.lengths:
            self.put("valid = (t < length)[:, None]")
        for j, out in enumerate([o for o in self.tape.outputs if o.kind == "s"]):
            w = self.width[j]
            self.put(f"n{j} = tl.broadcast_to({self.name[out.values[0]]}, [BM, B{w}])")
            if self.form.lengths:
                self.put(f"n{j} = tl.where(valid, n{j}, s{j})")
            self.store(self.at(self.param(f"sequence{j}"), "row", w), self.shown(f"n{j}"), f"k{w}")
        widths = [w for _, w in self.kept]
        for (v, w), offset in zip(self.kept, kept_offsets(widths), strict=True):
            at = self.at(self.param("kept"), "row", w, f"({kept_row(widths)})@{offset}")
            self.store(at, self.shown(self.name[v]), f"k{w}")
        for j in range(self.S):
            self.put(f"s{j} = n{j}")
        if phase is not None:
            for j, w in enumerate(self.width):
                self.store(self.at(self.param(f"out{j}"), "r", w), f"s{j}", f"k{w}")
        if self.recurrent and self.form.mode != "alone":
            w = self.form.first
            self.store(self.at(self.param(RECURRENT), "(r + (step % 2) * B64)", w), "s0", f"k{w}")
            self.barrier()


def kept_offsets(widths: list[str]) -> list[str]:
    """Where each kept value stands in a row of what is kept."""
    return [f"({widths[:i].count('H')} * H + {widths[:i].count('P')} * P)" for i in range(len(widths))]


def kept_row(widths: list[str]) -> str:
    """How many numbers a row of what is kept has."""
    return f"{widths.count('H')} * H + {widths.count('P')} * P"


def _states(tape: Tape) -> list[tuple[int, int]]:
    names = tape.names("s")
    return [(i, names.index(p.name)) for i, p in enumerate(tape.inputs) if p.kind == "s"]


@lru_cache(maxsize=1024)
def forward_texts(form: Form, analysis: Analysis) -> tuple[Text, ...]:
    """The kernels of the forward pass: one, or, step by step, one for each phase of a step."""
    kept = tuple((o.values[0], analysis.widths[o.values[0]]) for o in analysis.tape.outputs if o.kind == "k")
    blocks = sum(c.x is not None for c in analysis.tape.columns)

    def make(name: str, phase: int | None) -> Text:
        return _Forward(form, analysis, kept, str(blocks)).kernel(name, phase)

    if form.mode != "stepwise":
        return (make("forward", None),)
    return tuple(make(f"forward_{p}", p) for p in range(analysis.n_stages))
