"""The backward pass as the text of Triton kernels: one for the whole pass, or one for each part of a step."""

from __future__ import annotations

from functools import lru_cache

from throughtime.engine.triton.analysis import Analysis
from throughtime.engine.triton.exchange import Exchange
from throughtime.engine.triton.forward_text import kept_offsets, kept_row
from throughtime.engine.triton.products import Weight
from throughtime.engine.triton.writer import Form, Text, used


class _Backward(Exchange):
    def __init__(self, form: Form, analysis: Analysis, kept: tuple[str, ...]):
        super().__init__(form, analysis)
        self.kept = kept
        self.states = self.tape.names("d")
        self.width = [form.first] + ["H"] * (len(self.states) - 1)
        self.recurrent = [(k, c.h) for k, c in enumerate(self.tape.columns) if c.h is not None]
        self.z_of = {o.name: o.values[0] for o in self.tape.outputs if o.kind == "z"}
        self.s_of = {o.name: o.values[0] for o in self.tape.outputs if o.kind == "s"}
        self.w_out = [(self.tape.names("w").index(o.name), o.values[0]) for o in self.tape.outputs if o.kind == "w"]

    def time_of(self, step: str) -> str:
        return step if self.form.reverse else f"T - 1 - ({step})"

    def kernel(self, name: str, phase: int | None) -> Text:
        """The kernel of one phase of a step, or, without one, of all steps."""
        last = self.analysis.n_stages - 1
        self.prologue()
        stages = range(last + 1) if phase is None else [phase] if phase <= last else []
        matrices = [m for m in self.own_matrices() if phase is None or self.needs(m, phase)]
        for m in matrices:
            self.declare(m)
        turned = self._recurrent_weights() if phase is None or phase > last else []
        ends = phase is None or phase == last
        for j, w in enumerate(self.width):
            if phase is None or phase <= last or j == 0:
                self.load(f"d{j}", self.at(self.param(f"in{j}"), "r", w), f"k{w}")
        if ends:
            for j, _ in self.w_out:
                self.load(f"g{j}", self.at(self.param(f"gin{j}"), "r", "H"), "kH")
        for i, j in used(self.tape, "d"):
            self.name[i] = f"d{j}"
        given = self._given(phase)
        loop = phase is None
        if loop:
            self._read(given, "begin", "begin < end")
            self.put("for step in range(begin, end):")
            self.depth += 1
        else:
            self.put("step = begin")
        self.clock("step")
        if not loop:
            self._read(given, "step", "step < end")
        for target in given:
            self.put(f"{target} = q{target}")
        if loop:
            self._read(given, "step + 1", "step + 1 < end")
        if self.form.lengths:
            self.put("valid = (t < length)[:, None]")
            for target in given:
                if target.startswith("y"):  # what is shown beyond the length is a constant 0
                    self.put(f"{target} = tl.where(valid, {target}, 0.0)")
        for stage in stages:
            self._stage(stage, matrices, phase)
        if ends:
            self._finish()
        if turned:
            self.barrier()
            sums = min(self.form.sums, len(turned))
            for n, (k, u) in enumerate(turned):
                source = f"e{k}" if self.form.mode == "alone" else self.param("dz")
                width = f"({len(self.tape.columns)} * H)@{k} * H"
                self.partial_products(source, [(f"back{n % sums}", u)], "row", width, more=n >= sums)
            self.put(f"back = {' + '.join(f'back{n}' for n in range(sums))}")
            self.join("back")
            self.put("d0 = d0 + back")
        if loop:
            self.depth -= 1
        for j, w in enumerate(self.width):
            if ends or (phase is not None and phase > last and j == 0):
                self.store(self.at(self.param(f"out{j}"), "r", w), f"d{j}", f"k{w}")
        if ends:
            for j, _ in self.w_out:
                self.store(self.at(self.param(f"gout{j}"), "r", "H"), f"g{j}", "kH")
        return self.text(name)

    def _recurrent_weights(self) -> list[tuple[int, Weight]]:
        if self.form.truncated:
            return []
        first, out = self.form.first, []
        for k, h in self.recurrent:
            if self.tape.columns[k].name in self.z_of:
                out.append((k, self.declare(Weight(f"u{k}", "U", f"{h} * H * {first}", False, "H", first))))
        return out

    def _given(self, phase: int | None) -> dict[str, tuple[str, int]]:
        """What is read at each step: the variable, and the kind and the number of what it holds."""
        found: dict[str, tuple[str, int]] = {}
        for kind in "snky":
            mine = None if phase is None else self.read_in(phase, kind)
            names = self.tape.names(kind)
            for i, j in used(self.tape, kind):
                if mine is not None and j not in mine:
                    continue
                number = int(names[j]) if kind == "k" else self.states.index(names[j])
                found[f"{kind}{number}"] = (kind, number)
                self.name[i] = f"{kind}{number}"
        return found

    def _read(self, given: dict[str, tuple[str, int]], step: str, there: str) -> None:
        # One step ahead of its use: main memory answers while the step before is computed.
        if not given:
            return
        self.clock(step, "t_next", "row_next")
        first, before = ("(t_next == T - 1)", "t_next + 1") if self.form.reverse else ("(t_next == 0)", "t_next - 1")
        for target, (kind, j) in given.items():
            w = self.kept[j] if kind == "k" else self.width[j]
            mask = f"k{w} & ({there})"
            if kind == "k":
                offset = kept_offsets(list(self.kept))[j]
                at = self.at(self.param("kept"), "row_next", w, f"({kept_row(list(self.kept))})@{offset}")
                self.load(f"q{target}", at, mask)
            elif kind == "n":
                self.load(f"q{target}", self.at(self.param(f"sequence{j}"), "row_next", w), mask)
            elif kind == "y":
                dt, db, du = (f"tl.cast({self.param(f'stride_{x}{j}')}, tl.int64)" for x in "tbu")
                at = f"{self.param(f'dy{j}')} + t_next * {dt} + r[:, None] * {db} + o{w}[None, :] * {du}"
                self.load(f"q{target}", at, mask)
            else:
                # The state before the step: of the step before, or the initial one where the pass began.
                start = f"(r < 0)[:, None] | {first}"
                if self.form.reverse and self.form.lengths:
                    start = f"(t_next + 1 >= length)[:, None] | {first}"
                self.put(f"begins = {start}", f"row_before = tl.cast({before}, tl.int64) * B64 + r")
                self.load(f"q{target}", self.at(self.param(f"first{j}"), "r", w), f"{mask} & begins")
                self.load(f"p{target}", self.at(self.param(f"sequence{j}"), "row_before", w), f"{mask} & (begins == 0)")
                self.put(f"q{target} = q{target} + p{target}")

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
        self.barrier()

    def _finish(self) -> None:
        """The gradients of net inputs, of weights inside the step, and of the states before the step."""
        C = len(self.tape.columns)
        for k, column in enumerate(self.tape.columns):
            at = self.at(self.param("dz"), "row", "H", f"({C} * H)@{k} * H")
            if column.name not in self.z_of:
                self.store(at, "0.0", "kH")
                continue
            value = f"tl.broadcast_to({self.name[self.z_of[column.name]]}, [BM, BH])"
            self.put(f"e{k} = {self.shown(value)}")
            self.store(at, f"e{k}", "kH")
        for n, v in enumerate(factors(self.analysis)):
            w = self.analysis.widths[v]
            value = f"tl.broadcast_to({self.name[v]}, [BM, B{w}])"
            self.store(self.at(self.param(f"factor{n}"), "row", w), self.shown(value), f"k{w}")
        for j, v in self.w_out:
            self.put(f"g{j} = g{j} + {self.shown(f'tl.broadcast_to({self.name[v]}, [BM, BH])')}")
        for j, w in enumerate(self.width):
            name = self.states[j]
            self.put(f"t{j} = tl.broadcast_to({self.name[self.s_of[name]]}, [BM, B{w}])" if name in self.s_of
                     else f"t{j} = tl.full([BM, B{w}], 0.0, CT)")  # fmt: skip
            if self.form.lengths:
                self.put(f"t{j} = tl.where(valid, t{j}, d{j})")
        for j in range(len(self.width)):
            self.put(f"d{j} = t{j}")


def factors(analysis: Analysis) -> list[int]:
    """The values whose outer products are the gradients of the cell's own matrices, each once."""
    return list(dict.fromkeys(v for o in analysis.tape.outputs if o.kind == "m" for v in o.values))


@lru_cache(maxsize=1024)
def backward_texts(form: Form, analysis: Analysis, kept: tuple[str, ...]) -> tuple[Text, ...]:
    """The kernels of the backward pass: one, or, step by step, one for each phase of a step."""

    def make(name: str, phase: int | None) -> Text:
        return _Backward(form, analysis, kept).kernel(name, phase)

    if form.mode != "stepwise":
        return (make("backward", None),)
    recurrent = any(c.h is not None for c in analysis.tape.columns) and not form.truncated
    return tuple(make(f"backward_{p}", p) for p in range(analysis.n_stages + recurrent))
