"""A pass whose states are carried on linearly, as the text of a Triton kernel: a scan over chunks of time."""

from __future__ import annotations

from functools import lru_cache

from throughtime.engine.triton.analysis import Analysis
from throughtime.engine.triton.backward_text import factors
from throughtime.engine.triton.expressions import lines_of
from throughtime.engine.triton.forward_text import kept_offsets, kept_row
from throughtime.engine.triton.scannable import Carried, factor_of
from throughtime.engine.triton.scannable import factors as factor_text
from throughtime.engine.triton.writer import Form, Text, Writer, used


class _Scan(Writer):
    """One program has one sequence and some units; a tile is [steps, units], its rows in the order of the pass."""

    def __init__(
        self, form: Form, analysis: Analysis, moving: tuple[Carried, ...], kept: tuple[str, ...], backward: bool
    ):
        super().__init__(form, analysis)
        self.added = {c.number: c.added for c in moving}
        self.kept, self.backward = kept, backward
        self.carried = "d" if backward else "s"
        names = self.tape.names(self.carried)
        self.S = len(names)
        self.out = {names.index(o.name): o.values[0] for o in self.tape.outputs if o.kind == "s"}
        self.inputs = {i: names.index(p.name) for i, p in enumerate(self.tape.inputs) if p.kind == self.carried}

    def kernel(self) -> Text:
        for name in ("T", "B", "begin", "end", "start"):
            self.param(name)
        self.put(
            "pm = tl.program_id(0) + start",
            "pn = tl.program_id(1)",
            "B64 = tl.cast(B, tl.int64)",
            "r = tl.cast(pm, tl.int64) + tl.arange(0, BM) * 0",
            "oH = pn * BH + tl.arange(0, BH)",
            "mH = oH < H",
        )
        if self.form.lengths:
            self.put(f"length = tl.load({self.param('lengths')} + tl.cast(pm, tl.int64))")
        for i, j in used(self.tape, "w"):
            self.put(f"w{j} = tl.load({self.param(f'unit{j}')} + oH, mask=mH, other=0).to(CT)[None, :]")
            self.name[i] = f"w{j}"
        for j in self.added:
            at = f"{self.param(f'in{j}')} + tl.cast(pm, tl.int64) * H + oH"
            self.put(f"c{j} = tl.load({at}, mask=mH, other=0).to(CT)[None, :]")
        sums = [(self.tape.names("w").index(o.name), o.values[0]) for o in self.tape.outputs if o.kind == "w"]
        for j, _ in sums:
            self.put(f"g{j} = tl.full([1, BH], 0.0, CT)")
        self.put("for base in range(0, T, BM):")
        self.depth += 1
        self._rows()
        self._inputs()
        self._sum()
        for v in self.analysis.order:
            if v not in self.name:
                self._operation(v, f"v{v}", self.name)
        self._results(sums)
        self.depth -= 1
        for j, _ in sums:
            at = f"{self.param(f'gout{j}')} + tl.cast(pm, tl.int64) * H + oH[None, :]"
            self.store(at, f"g{j}", "mH[None, :]")
        return self.text("scan_backward" if self.backward else "scan_forward")

    def _rows(self) -> None:
        backwards = self.form.reverse != self.backward
        last = "length - 1" if self.form.lengths else "T - 1"
        self.put(
            "q = base + tl.arange(0, BM)",
            f"t = {'T - 1 - q' if backwards else 'q'}",
            "row = t.to(tl.int64) * B64 + r",
            "there = q < T",
            "kH = there[:, None] & mH[None, :]",
            f"valid = (there{' & (t < length)' if self.form.lengths else ''})[:, None]",
            f"enters = valid & (t == {last if backwards else '0'})[:, None]",
            f"leaves = valid & (t == {'0' if backwards else last})[:, None]",
        )

    def _operation(self, v: int, target: str, names: dict[int, str]) -> None:
        op = self.analysis.op(v)
        self.put(*lines_of(op, target, [names[a] for a in op.args], self.form.double))
        names[v] = target

    def _inputs(self) -> None:
        for i, j in used(self.tape, "z"):
            block = self.tape.columns[j].x
            blocks = sum(c.x is not None for c in self.tape.columns)
            self.load(f"b{j}", f"{self.param('bias')} + {j} * H + oH", "mH")
            self.load(f"z{j}", self.at(self.param("x"), "row", "H", f"({blocks} * H)@{block} * H"), "kH")
            self.put(f"z{j} = z{j} + b{j}[None, :]")
            self.name[i] = f"z{j}"
        for i, j in used(self.tape, "k"):
            number = int(self.tape.names("k")[j])
            offset = kept_offsets(list(self.kept))[number]
            at = self.at(self.param("kept"), "row", "H", f"({kept_row(list(self.kept))})@{offset}")
            self.load(f"k{number}", at, "kH")
            self.name[i] = f"k{number}"
        states = self.tape.names(self.carried)
        for i, k in used(self.tape, "n"):
            j = states.index(self.tape.names("n")[k])
            self.load(f"n{j}", self.at(self.param(f"sequence{j}"), "row", "H"), "kH")
            self.name[i] = f"n{j}"
        for i, k in used(self.tape, "y"):
            j = states.index(self.tape.names("y")[k])
            dt, db, du = (f"tl.cast({self.param(f'stride_{x}{j}')}, tl.int64)" for x in "tbu")
            at = f"{self.param(f'dy{j}')} + t[:, None].to(tl.int64) * {dt} + r[:, None] * {db} + oH[None, :] * {du}"
            self.load(f"y{j}", at, "kH & valid")
            self.name[i] = f"y{j}"
        if self.backward:
            for i, j in used(self.tape, "s"):
                self._old(f"s{j}", j)
                self.name[i] = f"s{j}"
        # A carried value that does not go out is there at the first step only.
        for i, j in self.inputs.items():
            if j not in self.added:
                at = self.at(self.param(f"in{j}"), "r", "H")
                self.load(f"{self.carried}{j}", at, "enters & mH[None, :]")
                self.name[i] = f"{self.carried}{j}"

    def _old(self, target: str, j: int) -> None:
        start, before = ("(t == T - 1)", "t + 1") if self.form.reverse else ("(t == 0)", "t - 1")
        if self.form.reverse and self.form.lengths:
            start = "(t + 1 >= length)"
        self.put(f"begins = {start}[:, None]")
        self.load(target, self.at(self.param(f"first{j}"), "r", "H"), "kH & begins")
        at = self.at(self.param(f"sequence{j}"), f"(({before}).to(tl.int64) * B64 + r)", "H")
        self.load("earlier", at, "kH & (begins == 0)")
        self.put(f"{target} = {target} + earlier")

    def _sum(self) -> None:
        """What each step makes of the carried values, v -> a v + b; these maps, one after the other; the values."""
        if not self.added:
            return
        moving = {i: j for i, j in self.inputs.items() if j in self.added}
        self.put("nothing = tl.full([BM, BH], 0.0, CT)", "whole = tl.full([BM, BH], 1.0, CT)")
        trial = dict(self.name) | dict.fromkeys(moving, "nothing")
        factor = dict.fromkeys(moving, "whole")
        needed: set[int] = {self.out[j] for j in self.added}
        for v in reversed(self.analysis.order):
            if v in needed:
                needed.update(self.analysis.op(v).args)
        multiples = factor_of(self.tape, moving)
        for v in self.analysis.order:
            if v not in needed:
                continue
            self._operation(v, f"a{v}", trial)
            if v in multiples and not self.added[multiples[v]]:
                op = self.analysis.op(v)
                linear, given = factor_text(op, [trial[a] for a in op.args], [factor.get(a) for a in op.args])
                self.put(*lines_of(linear, f"f{v}", given, self.form.double))
                factor[v] = f"f{v}"
        read = {a for op in self.tape.ops for a in op.args}
        for j, added in self.added.items():
            self._carry(j, added, trial[self.out[j]], factor.get(self.out[j], "nothing"))
            for i in [i for i, k in moving.items() if k == j and i in read]:
                self.put(f"{self.carried}{j} = before{j}")
                self.name[i] = f"{self.carried}{j}"

    def _carry(self, j: int, added: bool, adds: str, factor: str) -> None:
        self.put(f"add{j} = tl.where(valid, tl.broadcast_to({adds}, [BM, BH]), 0.0)")
        if added:
            self.put(
                f"sum{j} = c{j} + tl.associative_scan(add{j}, 0, tl.standard._sum_combine)",
                f"before{j} = sum{j} - add{j}",
                f"c{j} = c{j} + tl.reduce(add{j}, 0, tl.standard._sum_combine, keep_dims=True)",
            )
        else:
            last = f"tl.where(step == BM - 1, sum{j}, 0.0)"
            self.put(
                f"mul{j} = tl.where(valid, tl.broadcast_to({factor}, [BM, BH]), 1.0)",
                f"all{j}, some{j} = tl.associative_scan((mul{j}, add{j}), 0, follow)",
                f"sum{j} = all{j} * c{j} + some{j}",
                "step = tl.arange(0, BM)[:, None]",
                "behind = tl.broadcast_to(tl.maximum(step - 1, 0), [BM, BH])",
                f"before{j} = tl.where(step == 0, c{j}, tl.gather(sum{j}, behind, 0))",
                f"c{j} = tl.reduce({last}, 0, tl.standard._sum_combine, keep_dims=True)",
            )
        self.name[self.out[j]] = f"sum{j}"

    def _results(self, sums: list[tuple[int, int]]) -> None:
        def shown(v: int) -> str:
            return f"tl.where(valid, tl.broadcast_to({self.name[v]}, [BM, BH]), 0.0)"

        for j in range(self.S):
            value = shown(self.out[j]) if j in self.out else "tl.full([BM, BH], 0.0, CT)"
            if not self.backward:
                self.store(self.at(self.param(f"sequence{j}"), "row", "H"), value, "kH")
            self.store(self.at(self.param(f"out{j}"), "r", "H"), value, "kH & leaves")
        offsets, row = kept_offsets(list(self.kept)), kept_row(list(self.kept))
        for o in self.tape.outputs:
            if o.kind == "k":
                at = self.at(self.param("kept"), "row", "H", f"({row})@{offsets[int(o.name)]}")
                self.store(at, shown(o.values[0]), "kH")
        if self.backward:
            z_of = {o.name: o.values[0] for o in self.tape.outputs if o.kind == "z"}
            C = len(self.tape.columns)
            for k, column in enumerate(self.tape.columns):
                value = shown(z_of[column.name]) if column.name in z_of else "0.0"
                self.store(self.at(self.param("dz"), "row", "H", f"({C} * H)@{k} * H"), value, "kH")
            for n, v in enumerate(factors(self.analysis)):
                self.store(self.at(self.param(f"factor{n}"), "row", "H"), shown(v), "kH")
        for j, v in sums:
            self.put(f"g{j} = g{j} + tl.reduce({shown(v)}, 0, tl.standard._sum_combine, keep_dims=True)")


@lru_cache(maxsize=512)
def scan_text(
    form: Form, analysis: Analysis, moving: tuple[Carried, ...], kept: tuple[str, ...], backward: bool
) -> Text:  # fmt: skip
    """The kernel of a pass that can be scanned."""
    return _Scan(form, analysis, moving, kept, backward).kernel()
