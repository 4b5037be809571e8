"""Many gradients sent back through one pass, side by side, as the text of Triton kernels: the (t,k) map."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from throughtime.engine.linear import LinearStep
from throughtime.engine.triton.analysis import Analysis
from throughtime.engine.triton.expressions import lines_of
from throughtime.engine.triton.forward_text import kept_offsets
from throughtime.engine.triton.map_scale import Scaled
from throughtime.engine.triton.products import Weight
from throughtime.engine.triton.writer import Form, Text, used


@dataclass(frozen=True)
class Wanted:
    """What the kernels of a map read and write beside the sizes.

    direct, above: for each state, whether a gradient enters it at the loss step itself, and at every step.
    values: whether what arrived is written out too.
    """

    direct: tuple[bool, ...]
    above: tuple[bool, ...]
    values: bool


def phases(analysis: Analysis) -> list[int]:
    """For every value of the tape how many products, one behind the other, it waits for; means wait for none, for a
    program has all units of its rows."""
    found = [0] * len(analysis.tape.inputs)
    for op in analysis.tape.ops:
        found.append(max(found[a] for a in op.args) + (op.name in ("linear", "linear_t")))
    return found


class MapText(Scaled):
    """A row is what one loss sends to one sequence, row n * B + b for the n-th loss; a program has all units of some.

    Each row stands as 2^exponent of what it is, near 1, so that a gradient vanishes or explodes as far as float64
    reaches, whatever the dtype of the step. Rows come in the order in which they begin.
    """

    def __init__(self, form: Form, analysis: Analysis, step: LinearStep, kept: tuple[str, ...], wanted: Wanted):
        super().__init__(form, analysis)
        self.step, self.kept, self.wanted = step, kept, wanted
        self.states = self.tape.names("d")
        self.S, self.C = len(self.states), len(self.tape.columns)
        self.width = [form.first] + ["H"] * (self.S - 1)
        self.phase_of = phases(analysis)
        self.last = max(self.phase_of)
        self.recurrent = [(k, c.h) for k, c in enumerate(self.tape.columns) if c.h is not None]

    def products_after(self, phase: int) -> list[int]:
        """The products of the step that wait for a phase and for nothing later."""
        n = len(self.tape.inputs)
        return [v for v in range(n, len(self.phase_of))
                if self.phase_of[v] == phase + 1 and self.analysis.op(v).name in ("linear", "linear_t")]  # fmt: skip

    def kernel(self, name: str, phase: int | None) -> Text:
        """The kernel of one phase of a step, or, without one, of all steps, which has the weights."""
        loop = phase is None
        self._prologue()
        matrices = self.own_matrices() if loop else []
        turned: list[tuple[int, Weight]] = []
        if loop:
            for m in matrices:
                self.declare(m)
            if not self.form.truncated:
                first = self.form.first
                turned = [(k, self.declare(Weight(f"u{k}", "U", f"{h} * H * {first}", False, "H", first)))
                          for k, h in self.recurrent]  # fmt: skip
            for j, w in enumerate(self.width):
                self.put(f"d{j} = tl.full([BM, B{w}], 0.0, CT)")
            for v, begin in (("exponent", 0), ("shift", 0), ("empty", 1)):
                self.put(f"{v} = tl.full([BM], {begin}, tl.int32)")
            self.put("step = tl.reduce(enters, 0, tl.standard._elementwise_min)", "while step < T:")
            self.depth += 1
        else:
            self.param("begin")
            self.put("step = begin")
            for j, w in enumerate(self.width):
                self.load(f"d{j}", self.at(self.param(f"d{j}_at"), "r", w), f"k{w}")
            for v in ("exponent", "shift", "empty") if phase == 0 else ("exponent",):
                self.put(f"{v} = tl.load({self.param(v + '_at')} + r, mask=rm, other=0)")
        self.put(
            f"t = {'step' if self.form.reverse else 'T - 1 - step'}",
            "row = tl.cast(t, tl.int64) * B + b",
            f"active = rm & (step >= enters){' & (t < length)' if self.form.lengths else ''}",
        )
        for w in self._widths():
            self.put(f"a{w} = active[:, None] & m{w}[None, :]")
        if loop or phase == 0:
            self._enter()
        for j, (i, _) in enumerate([(i, p) for i, p in enumerate(self.tape.inputs) if p.kind == "d"]):
            self.name[i] = f"d{j}"
        for p in range(self.last + 1) if phase is None else [phase]:
            self._phase(p, loop, matrices)
        if loop or phase == self.last:
            self._finish(turned, loop)
        if loop:
            self.put("step = step + 1")
        elif phase in (0, self.last):
            for j, w in enumerate(self.width):
                self.store(self.at(f"d{j}_at", "r", w), f"d{j}", f"k{w}")
            for v in [*(["exponent", "empty"] if phase == 0 else []), *(["shift"] if phase == self.last else [])]:
                self.put(f"tl.store({self.param(v + '_at')} + r, {v}, mask=rm)")
        return self.text(name)

    def _widths(self) -> str:
        return "H" if self.form.square else "HP"

    def _prologue(self) -> None:
        for name in ("T", "B", "R", "losses", "starts"):
            self.param(name)
        self.put(
            "r = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)",
            "rm = r < R",
            "n = r // B",
            "b = r % B",
            "R64 = tl.cast(R, tl.int64)",
            "loss = tl.load(losses + n, mask=rm, other=-1)",
            "enters = tl.load(starts + n, mask=rm, other=2147483647)",
        )
        for w in self._widths():
            self.put(f"o{w} = tl.arange(0, B{w})", f"m{w} = o{w} < {w}", f"k{w} = rm[:, None] & m{w}[None, :]")
        if self.form.lengths:
            self.put(f"length = tl.load({self.param('lengths')} + b, mask=rm, other=0)")
        if any(self.wanted.above):
            self.put(f"asked = tl.load({self.param('asked')} + n, mask=rm, other=0).to(tl.int64)")
        for i, j in used(self.tape, "w"):
            self.name[i] = f"w{j}"
            self.put(f"w{j} = tl.load({self.param(f'unit{j}')} + oH, mask=mH, other=0).to(CT)[None, :]")

    def _enter(self) -> None:
        """Brings rows back near 1, and adds what enters from outside, in float64, at the scale of the row."""
        entering: dict[int, str] = {}
        for j, w in enumerate(self.width):
            parts = []
            if self.wanted.direct[j]:
                self.load(f"g{j}", self.at(self.param(f"direct{j}"), "row", w), f"a{w} & (loss == t)[:, None]", False)
                parts.append(f"g{j}")
            if self.wanted.above[j]:
                at = self.at(self.param(f"above{j}"), "((asked * T + t) * B + b)", w)
                self.load(f"h{j}", at, f"a{w}", False)
                parts.append(f"h{j}")
            if parts:
                entering[j] = f"g{j}"
                self.put(f"g{j} = {' + '.join(parts)}")
        self.bring_near(entering, self.S)

    def _phase(self, phase: int, loop: bool, matrices: list[Weight]) -> None:
        """The operations of one phase: products at its entry, done on chip or read where torch has left them."""
        n = len(self.tape.inputs)
        ops = [v for v in range(n, len(self.phase_of)) if self.phase_of[v] == phase]
        if not loop:
            for v in self._crossing(phase):
                w = self.analysis.widths[v]
                self.load(f"v{v}", self.at(self.param(f"cross{v}"), "r", w), f"k{w}")
                self.name[v] = f"v{v}"
        self._read({a for v in ops for a in self.analysis.op(v).args})
        for v in ops:
            op, w = self.analysis.op(v), self.analysis.widths[v]
            self.name[v] = f"v{v}"
            if op.name == "mean":
                of = self.analysis.widths[op.args[0]]
                total = f"tl.where(m{of}[None, :], {self.name[op.args[0]]}, 0.0)"
                total = f"tl.reduce({total}, 1, tl.standard._sum_combine, keep_dims=True)"
                self.put(f"v{v} = tl.broadcast_to({total} / {of}, [BM, B{of}])")
            elif op.name in ("linear", "linear_t"):
                if loop:
                    self.products(self.name[op.args[0]], [(f"v{v}", self._matrix(v, matrices))], "", f"{w}@0")
                else:
                    self.load(f"v{v}", self.at(self.param(f"product{v}"), "r", w), f"k{w}")
            else:
                self.put(*lines_of(op, f"v{v}", [self.name[a] for a in op.args], self.form.double))
        if loop or phase == self.last:
            return
        for source in dict.fromkeys(self.analysis.op(v).args[0] for v in self.products_after(phase)):
            w = self.analysis.widths[source]
            value = f"tl.broadcast_to({self.name[source]}, [BM, B{w}])"
            self.store(self.at(self.param(f"given{source}"), "r", w), value, f"k{w}")
        for v in {c for later in range(phase + 1, self.last + 1) for c in self._crossing(later)}:
            if self.phase_of[v] == phase:
                w = self.analysis.widths[v]
                value = f"tl.broadcast_to({self.name[v]}, [BM, B{w}])"
                self.store(self.at(self.param(f"cross{v}"), "r", w), value, f"k{w}")

    def _crossing(self, phase: int) -> list[int]:
        """The results of earlier phases that a phase reads; the last one also gives out the outputs."""
        n = len(self.tape.inputs)
        mine = [self.analysis.op(v) for v in range(n, len(self.phase_of)) if self.phase_of[v] == phase]
        read = {a for op in mine if op.name not in ("linear", "linear_t") for a in op.args}
        if phase == self.last:
            read |= {v for o in self.tape.outputs for v in o.values}
        return sorted(v for v in read if v >= n and self.phase_of[v] < phase)

    def _row(self) -> str:
        beside = self.C + self.step.bases if self.step.bases else 0
        return f"({self.kept.count('H') + beside} * H + {self.kept.count('P')} * P)"

    def _read(self, values: set[int]) -> None:
        """What the step multiplies by, each read once in a kernel."""
        offsets = kept_offsets(list(self.kept))
        for i, inp in enumerate(self.tape.inputs):
            if i in values and inp.kind == "k" and i not in self.name:
                w, number = self.kept[int(inp.name)], int(inp.name)
                at = self.at(self.param("kept"), "row", w, f"{self._row()}@{offsets[number]}")
                self.load(f"k{number}", at, f"a{w}")
                self.name[i] = f"k{number}"

    def _finish(self, turned: list[tuple[int, Weight]], loop: bool) -> None:
        """The gradients of the net inputs, the sizes of all that arrived, and the states before the step."""
        self._read({v for o in self.tape.outputs for v in o.values})
        columns = self._columns()
        self._sizes(columns)
        if self.wanted.values:
            self._write_out(columns)
        if not loop and self.recurrent and not self.form.truncated:
            for k, _ in self.recurrent:
                at = self.at(self.param("dz"), "r", "H", f"({self.C} * H)@{k} * H")
                self.store(at, columns[k] or "0.0", "kH")
        s_of = {o.name: o.values[0] for o in self.tape.outputs if o.kind == "s"}
        for j, w in enumerate(self.width):
            name = self.states[j]
            value = f"tl.broadcast_to({self.name[s_of[name]]}, [BM, B{w}])" if name in s_of else "0.0"
            self.put(f"t{j} = tl.where(active[:, None], {value}, tl.full([BM, B{w}], 0.0, CT))")
        for k, u in turned:
            if columns[k]:
                self.products(columns[k], [(f"back{k}", u)], "", "H@0")
                self.put(f"t0 = t0 + back{k}")
        for j in range(self.S):
            self.put(f"d{j} = t{j}")

    def _columns(self) -> list[str]:
        """The gradient of each column's net input, "" where there is none: folded ones are multiples of a base."""
        out: list[str] = []
        z_of = {o.name: o.values[0] for o in self.tape.outputs if o.kind == "z"}
        beyond = kept_offsets([*self.kept, "H"])[-1]
        for k, column in enumerate(self.tape.columns):
            if self.step.bases:
                base = self.name[z_of[str(self.step.columns[k][0])]]
                self.load(f"f{k}", self.at("kept", "row", "H", f"{self._row()}@{beyond} + {k} * H"), "aH")
                self.param("kept")
                self.put(f"e{k} = tl.broadcast_to({base} * f{k}, [BM, BH])")
            elif column.name in z_of:
                self.put(f"e{k} = tl.broadcast_to({self.name[z_of[column.name]]}, [BM, BH])")
            else:
                out.append("")
                continue
            out.append(f"e{k}")
        return out

    def _totals(self) -> list[str]:
        """What arrives at each new state along all paths."""
        own = {int(o.name) - len(self.kept): o.values[0] for o in self.tape.outputs if o.kind == "k"}
        base = {int(o.name): o.values[0] for o in self.tape.outputs if o.kind == "z"} if self.step.bases else {}
        found = []
        for j, (kind, at) in enumerate(self.step.totals):
            value = f"d{j}" if kind == "given" else self.name[own[at] if kind == "own" else base[at]]
            found.append(f"tl.broadcast_to({value}, [BM, B{self.width[j]}])")
        return found

    def _sizes(self, columns: list[str]) -> None:
        self.size("size0", [(e, "H") for e in columns if e])
        for j, value in enumerate(self._totals()):
            self.size(f"size{1 + j}", [(value, self.width[j])])
        self.hand_out_sizes(1 + self.S)

    def _write_out(self, columns: list[str]) -> None:
        self.put("place = (n * T + t) * B + b")
        back = ".to(tl.float64) * back1[:, None] * back2[:, None]"
        for k, e in enumerate(columns):
            if e:
                at = self.at(self.param("values0"), "place", "H", f"({self.C} * H)@{k} * H")
                self.store(at, f"{e}{back}", "aH")
        for j, value in enumerate(self._totals()):
            w = self.width[j]
            self.store(self.at(self.param(f"values{1 + j}"), "place", w), f"{value}{back}", f"a{w}")


@lru_cache(maxsize=256)
def map_texts(
    form: Form, analysis: Analysis, step: LinearStep, kept: tuple[str, ...], wanted: Wanted
) -> tuple[Text, ...]:
    """The kernels of a map: one that walks through time and has the weights, or one for each phase of a step."""
    if form.mode == "alone":
        return (MapText(form, analysis, step, kept, wanted).kernel("map", None),)
    last = max(phases(analysis))
    return tuple(MapText(form, analysis, step, kept, wanted).kernel(f"map_{p}", p) for p in range(last + 1))
