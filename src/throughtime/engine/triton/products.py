"""The products of a step with its weights, and means over units, as Triton text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from throughtime.engine.triton.analysis import Analysis
from throughtime.engine.triton.writer import Form, Writer


@dataclass(frozen=True)
class Weight:
    """A matrix as a factor of a product: element (k, n) of what is multiplied, and where it stands.

    turned: the rows of the stored matrix are n; else they are k.
    """

    name: str
    pointer: str
    base: str
    turned: bool
    k: str
    n: str


class Products(Writer):
    """A writer that knows which weights are read, and how sums over units are cut."""

    def __init__(self, form: Form, analysis: Analysis):
        super().__init__(form, analysis)
        self.weights: dict[str, Weight] = {}

    def declare(self, weight: Weight) -> Weight:
        """Makes a weight known; what is held is read where this stands."""
        self.param(weight.pointer)
        if weight.name not in self.weights:
            self.weights[weight.name] = weight
            if self.form.held:
                for c in range(self._chunks(weight.k)):
                    self._read_weight(weight, f"{weight.name}_{c}", str(c))
        return weight

    def _chunks(self, w: str) -> int:
        return self.form.chunks[w != "H"]

    def _terms(self, w: str, chunk: str) -> str:
        """Which terms of a sum over width w are multiplied at a time: [depth], or [split, depth / split]."""
        return f"o{w}" if self.form.mode == "alone" else f"({chunk} * BK + {'oS' if self.form.split > 1 else 'oK'})"

    def _read_weight(self, m: Weight, target: str, chunk: str) -> None:
        terms, front = self._terms(m.k, chunk), "None, " * (self.form.split > 1)
        k, n = f"{terms}[{':, ' * (self.form.split > 1)}:, None]", f"o{m.n}[{front}None, :]"
        place = f"{n}.to(tl.int64) * {m.k} + {k}" if m.turned else f"{k}.to(tl.int64) * {m.n} + {n}"
        mask = f"({k} < {m.k}) & ({n} < {m.n})"
        self.put(f"{target} = tl.load({m.pointer} + ({m.base} + {place}), mask={mask}, other=0).to(DOT)")

    def dot(self, a: str, m: str, acc: str | None) -> str:
        """One product, added to what is there."""
        start = f", {acc}" if acc else ""
        return f"tl.dot({a}, {m}{start}, input_precision=PRECISION, out_dtype=CT)"

    def products(self, source: str, jobs: Sequence[tuple[str, Weight]], rows: str, width: str) -> None:
        """Sums over all units of a value: `source` is the value itself, or, where programs share the units, the
        table it was written to, whose rows are `rows` and whose width and offset are `width` ("width@offset")."""
        self.partial_products(source, jobs, rows, width)
        for target, _ in jobs:
            self.join(target)

    def join(self, target: str) -> None:
        """Adds up the parts of a sum that several groups of threads have worked out."""
        if self.form.split > 1:
            self.put(f"{target} = tl.reduce({target}, 0, tl.standard._sum_combine)")

    def partial_products(self, source: str, jobs: Sequence[tuple[str, Weight]], rows: str, width: str) -> None:
        """The same before the parts are added up."""
        k = jobs[0][1].k
        if self.form.mode == "alone":
            # What stands beyond the last unit may be anything, a NaN too: it must not enter a sum.
            block = f"tl.broadcast_to(tl.where(m{k}[None, :], {source}, 0.0), [BM, B{k}])"
            low = self.fresh("low")
            self.put(f"{low} = {block}.to(LOW).to(DOT)")
            for target, m in jobs:
                self.put(f"{target} = {self.dot(low, m.name + '_0', None)}")
            return
        stride, offset = width.split("@")
        split, held = self.form.split > 1, self.form.held
        for target, m in jobs:
            self.put(f"{target} = tl.full([{'SPLIT, ' * split}BM, B{m.n}], 0.0, CT)")
        if not held:
            self.put(f"for c in range(0, ({k} + BK - 1) // BK):")
            self.depth += 1
        for c in range(self._chunks(k)) if held else ["c"]:
            terms = f"{self._terms(k, str(c))}[{':, None, :' if split else 'None, :'}]"
            row, mine = ("[None, :, None]", "rm[None, :, None]") if split else ("[:, None]", "rm[:, None]")
            at = f"{source} + ({rows}{row} * {stride} + {offset} + {terms})"
            mask = f"{mine} & ({terms} < {k})"
            part = self.fresh("part")
            self.put(f"{part} = tl.load({at}, mask={mask}, other=0, cache_modifier='.cg').to(DOT)")
            for target, m in jobs:
                factor = f"{m.name}_{c}"
                if not held:
                    self._read_weight(m, factor, "c")
                self.put(f"{target} = {self.dot(part, factor, target)}")
        if not held:
            self.depth -= 1

    def mean(self, target: str, source: str, w: str, rows: str) -> None:
        """The mean over units, the same in every unit."""
        total = "tl.reduce({}, 1, tl.standard._sum_combine, keep_dims=True)"
        if self.form.mode == "alone":
            whole = total.format(f"tl.where(m{w}[None, :], {source}, 0.0)")
            self.put(f"{target} = tl.broadcast_to({whole} / {w}, [BM, B{w}])")
            return
        self.put(f"{target} = tl.full([BM, 1], 0.0, CT)", f"for c in range(0, ({w} + BK - 1) // BK):")
        self.depth += 1
        at = f"{source} + ({rows}[:, None] * {w} + (c * BK + oK)[None, :])"
        mask = f"rm[:, None] & ((c * BK + oK) < {w})[None, :]"
        part = self.fresh("part")
        self.put(f"{part} = tl.load({at}, mask={mask}, other=0, cache_modifier='.cg')")
        self.put(f"{target} = {target} + {total.format(part)}")
        self.depth -= 1
        self.put(f"{target} = tl.broadcast_to({target} / {w}, [BM, B{w}])")

    def _matrix(self, v: int, matrices: Sequence[Weight]) -> Weight:
        j, plain = self.analysis.matrix(v)
        return next(m for m in matrices if m.name == matrix_name(j, plain))

    def own_matrices(self) -> list[Weight]:
        """The cell's own matrices, each in the directions in which the tape multiplies."""
        found: dict[str, Weight] = {}
        for v in self.analysis.order:
            op = self.analysis.op(v)
            if op.name not in ("linear", "linear_t"):
                continue
            j, plain = self.analysis.matrix(v)
            rows, columns = self.analysis.matrices[j]
            k, n = (rows, columns) if plain else (columns, rows)
            name = matrix_name(j, plain)
            found[name] = Weight(name, f"matrix{j}", "0", not plain, k, n)
        return list(found.values())

    def needs(self, m: Weight, phase: int) -> bool:
        products = [v for v in self.analysis.whole_rows(phase) if self.analysis.op(v).name != "mean"]
        return any(m.name == matrix_name(*self.analysis.matrix(v)) for v in products)


def matrix_name(j: int, plain: bool) -> str:
    return f"mt{j}" if plain else f"m{j}"
