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
        table it was written to, whose rows are `rows` and whose width and offset are `width` ("width@offset").

        rows: says `{r}` for the rows of the program, which may be multiplied in parts, so that a thread has fewer sums
        at a time.
        """
        n = self.form.parts
        if n == 1:
            self.partial_products(source, jobs, rows.format(r="r"), width)
        for p in range(n if n > 1 else 0):
            self.partial_products(source, [(f"{t}p{p}", m) for t, m in jobs], rows.format(r=f"r{p}"), width, str(p))
            for target, _ in jobs:
                self.join(f"{target}p{p}")
        for target, m in jobs:
            if n == 1:
                self.join(target)
            else:
                whole = _one_below_the_other([f"{target}p{p}" for p in range(n)])
                self.put(f"{target} = tl.reshape({whole}, [BM, B{m.n}])")

    def join(self, target: str) -> None:
        """Adds up the parts of a sum that several groups of threads have worked out."""
        if self.form.split > 1:
            places = f"tl.arange(0, {target}.shape[1])[None, :]"
            self.put(f"{target} = tl.reduce({target}, 0, tl.standard._sum_combine)")
            # Every group of threads now has all sums. Gathered as they stand they are shared out among the groups;
            # without it the whole step would be worked out by each.
            self.put(f"{target} = tl.gather({target}, tl.broadcast_to({places}, {target}.shape), 1)")

    def partial_products(
        self, source: str, jobs: Sequence[tuple[str, Weight]], rows: str, width: str, part: str = "", more: bool = False
    ) -> None:
        """The same before the parts of a sum are added up, of all rows or of one part of them; more: added to what is
        there."""
        k = jobs[0][1].k
        if self.form.mode == "alone":
            # What stands beyond the last unit may be anything, a NaN too: it must not enter a sum.
            block = f"tl.broadcast_to(tl.where(m{k}[None, :], {source}, 0.0), [BM, B{k}])"
            low = self.fresh("low")
            self.put(f"{low} = {block}.to(LOW).to(DOT)")
            for target, m in jobs:
                self.put(f"{target} = {self.dot(low, m.name + '_0', target if more else None)}")
            return
        stride, offset = width.split("@")
        split, held = self.form.split > 1, self.form.held
        high = f"BM // {self.form.parts}" if part else "BM"
        for target, m in [] if more else jobs:
            self.put(f"{target} = tl.full([{'SPLIT, ' * split}{high}, B{m.n}], 0.0, CT)")
        if not held:
            self.put(f"for c in range(0, ({k} + BK - 1) // BK):")
            self.depth += 1
        for c in range(self._chunks(k)) if held else ["c"]:
            terms = f"{self._terms(k, str(c))}[{':, None, :' if split else 'None, :'}]"
            row = "[None, :, None]" if split else "[:, None]"
            mine = f"rm{part}{row}"
            # What changes from chunk to chunk stands apart, in 64 bits: one address then serves all of them.
            first = f"{'oS' if split else 'oK'}[{':, None, :' if split else 'None, :'}]"
            at = f"{source} + ({rows}{row} * {stride} + {first} + ({offset} + {c} * BK))"
            mask = f"{mine} & ({terms} < {k})"
            some = self.fresh("some")
            self.put(f"{some} = tl.load({at}, mask={mask}, other=0, cache_modifier='.cg').to(DOT)")
            for target, m in jobs:
                factor = f"{m.name}_{c}"
                if not held:
                    self._read_weight(m, factor, "c")
                self.put(f"{target} = {self.dot(some, factor, target)}")
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


def _one_below_the_other(parts: Sequence[str]) -> str:
    """Tiles [n, N] put together, [parts, .., n, N] or the like, which is [parts * n, N] in memory's order."""
    levels = 0
    while len(parts) > 1:
        parts = [f"tl.join({a}, {b})" for a, b in zip(parts[: len(parts) // 2], parts[len(parts) // 2 :], strict=True)]
        levels += 1
    return f"tl.permute({parts[0]}, ({', '.join(map(str, [*range(2, 2 + levels), 0, 1]))}))"


def matrix_name(j: int, plain: bool) -> str:
    return f"mt{j}" if plain else f"m{j}"
