"""How programs that share the units of a row see each other's values: tables, a barrier, and parts of a step."""

from __future__ import annotations

from collections.abc import Sequence

from throughtime.engine.triton.analysis import WHOLE_ROW
from throughtime.engine.triton.products import Products, Weight


class Exchange(Products):
    """A writer of a pass that walks step by step, stage by stage: what a stage reads by whole rows is handed to it."""

    def whole_rows(self, stage: int, matrices: Sequence[Weight]) -> None:
        """The products and means at the entry of a stage."""
        for source in self.analysis.sources(stage):
            mine = [v for v in self.analysis.whole_rows(stage) if self.analysis.op(v).args[0] == source]
            w = self.analysis.widths[source]
            for mean in (True, False):
                found = [v for v in mine if (self.analysis.op(v).name == "mean") == mean]
                if not found:
                    continue
                for v in found:
                    self.name[v] = f"v{v}"
                table = self.name[source] if self.form.mode == "alone" else self.param(exchange(source, mean))
                rows = "" if self.form.mode == "alone" else "({r} + (step % 2) * B64)"
                if mean:
                    self.mean(f"v{found[0]}", table, w, rows.format(r="r"))
                    continue
                jobs = [(f"v{v}", self._matrix(v, matrices)) for v in found]
                self.products(table, jobs, rows, f"{w}@0")

    def hand_out(self, stage: int) -> None:
        """Writes what the next stage reads by whole rows to where every program can read it."""
        if self.form.mode == "alone":
            return
        for source in self.analysis.sources(stage):
            w = self.analysis.widths[source]
            readers = {self.analysis.op(v).name == "mean" for v in self.analysis.whole_rows(stage)
                       if self.analysis.op(v).args[0] == source}  # fmt: skip
            for mean in readers:
                table = self.param(exchange(source, mean))
                value = f"tl.broadcast_to({self.name[source]}, [BM, B{w}])"
                self.store(self.at(table, "(r + (step % 2) * B64)", w), value, f"k{w}")

    def barrier(self) -> None:
        """All programs of the same rows meet: what each wrote before, all can read after. One alone waits for its own
        threads."""
        if self.form.mode != "together":
            return
        self.put(
            "met = met + TILES",
            "tl.debug_barrier()",
            "if TILES > 1:",
            "    tl.atomic_add(arrivals + pm * 32, 1, sem='acq_rel', scope='gpu')",
            "    while tl.atomic_add(arrivals + pm * 32, 0, sem='acquire', scope='gpu') < met:",
            "        pass",
            "    tl.debug_barrier()",
        )

    def crossing(self, stage: int) -> list[int]:
        """The results of operations of a stage that later stages read, or that the pass gives out at its end."""
        found = []
        for v in self.analysis.order:
            if self.analysis.stages[v] != stage:
                continue
            later = [u for u in self.analysis.order if self.analysis.stages[u] > stage]
            read = {a for u in later for a in self.analysis.op(u).args if self.analysis.op(u).name not in WHOLE_ROW}
            # A whole row's source is handed out by the stage before it, which may be a later one than its own.
            handed = {self.analysis.op(u).args[0] for u in later
                      if self.analysis.op(u).name in WHOLE_ROW and self.analysis.stages[u] > stage + 1}  # fmt: skip
            given = {x for o in self.tape.outputs for x in o.values} if stage < self.analysis.n_stages - 1 else set()
            if v in read | handed | given:
                found.append(v)
        return found

    def take_crossing(self, stage: int) -> None:
        """Reads what earlier parts of the step left for this one."""
        for v in [v for earlier in range(stage) for v in self.crossing(earlier)]:
            w = self.analysis.widths[v]
            self.load(f"v{v}", self.at(self.param(f"cross{v}"), "r", w), f"k{w}")
            self.name[v] = f"v{v}"

    def leave_crossing(self, stage: int) -> None:
        """Leaves for later parts of the step what this one has worked out."""
        for v in self.crossing(stage):
            w = self.analysis.widths[v]
            self.store(self.at(self.param(f"cross{v}"), "r", w), f"v{v}", f"k{w}")

    def read_in(self, phase: int, kind: str) -> set[int]:
        names, found = self.tape.names(kind), set()
        for v in self.analysis.order:
            if self.analysis.stages[v] == phase or self._handed_by(v, phase):
                for a in self.analysis.op(v).args:
                    if a < len(self.tape.inputs) and self.tape.inputs[a].kind == kind:
                        found.add(names.index(self.tape.inputs[a].name))
        if phase == self.analysis.n_stages - 1:
            for o in self.tape.outputs:
                for a in o.values:
                    if a < len(self.tape.inputs) and self.tape.inputs[a].kind == kind:
                        found.add(names.index(self.tape.inputs[a].name))
        return found

    def _handed_by(self, v: int, phase: int) -> bool:
        return self.analysis.stages[v] == phase + 1 and v in self.analysis.whole_rows(phase + 1)


def exchange(source: int, mean: bool) -> str:
    """The table through which programs see each other's units of a value: as the mean reads it, or the products."""
    return f"{'whole' if mean else 'given'}{source}"
