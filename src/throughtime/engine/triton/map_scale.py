"""Rows of a map kept near 1 by powers of two of their own, and their lengths, as Triton text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from throughtime.engine.triton.products import Products

# How far a row may wander from 1, as a power of two, before it is brought back: float32, float64.
FAR = (20, 300)
# Exponents of the powers of two that the dtype has itself.
ENDS = (126, 1022)


def two_to(e: str, double: bool) -> str:
    """2^e by its bits; an exponent beyond the ends counts as the end."""
    bits, bias, kind = (52, 1023, "64") if double else (23, 127, "32")
    inside = f"tl.minimum(tl.maximum({e}, {-ENDS[double]}), {ENDS[double]})"
    return f"(({inside} + {bias}).to(tl.int{kind}) << {bits}).to(tl.float{kind}, bitcast=True)"


def halves(e: str, double: bool) -> tuple[str, str]:
    """Two powers of two whose product is 2^e: one alone may not reach as far."""
    return two_to(f"({e}) >> 1", double), two_to(f"({e}) - (({e}) >> 1)", double)


def exponent_of(v: str) -> str:
    """e with 2^e <= v < 2^(e + 1), for v in float64; -1023 for 0."""
    return f"((({v}).to(tl.int64, bitcast=True) >> 52) & 2047).to(tl.int32) - 1023"


class Scaled(Products):
    """A writer whose rows are variables d0, d1, ..., each 2^exponent times what it stands for.

    exponent, shift, empty: int32 for each row: its power of two; what it is to be moved by before the next step; 1 as
    long as nothing has entered it.
    """

    def bring_near(self, entering: Mapping[int, str], states: int) -> None:
        """Moves each row by its `shift`; adds what enters from outside, in float64, at the scale of the row.

        A row takes the scale of what enters first; and that of what enters later, if it drowns all there was.
        """
        if entering:
            found = [f"tl.reduce(tl.abs({g}), 1, tl.standard._elementwise_max)" for g in entering.values()]
            far = FAR[self.form.double]
            self.put(
                f"largest = {found[0]}",
                *(f"largest = tl.maximum(largest, {f})" for f in found[1:]),
                f"high = {exponent_of('largest')}",
                "known = (largest > 0) & (largest < float('inf'))",
                "exponent = exponent + shift",
                "fresh = known & (empty != 0)",
                f"drowns = known & (empty == 0) & (high + exponent > {far})",
                "change = shift + tl.where(drowns, -high - exponent, 0)",
                f"near = tl.where((high < {far}) & (high > {-far}), 0, -high)",
                "exponent = tl.where(fresh, near, tl.where(drowns, -high, exponent))",
                "empty = tl.where(largest == 0, empty, 0)",
            )
        else:
            self.put("change = shift", "exponent = exponent + shift")
        one, two = halves("change", self.form.double)
        self.put(f"one = {one}", f"two = {two}")
        for j in range(states):
            self.put(f"d{j} = d{j} * one[:, None] * two[:, None]")
        if entering:
            one, two = halves("exponent", True)
            self.put(f"one = {one}", f"two = {two}")
            for j, g in entering.items():
                self.put(f"d{j} = d{j} + ({g} * one[:, None] * two[:, None]).to(CT)")

    def size(self, target: str, values: Sequence[tuple[str, str]]) -> None:
        """The length of each row over several values (text, width), in float64, as the row stands."""
        if not values:
            self.put(f"{target} = tl.full([BM], 0.0, tl.float64)")
            return
        end = ENDS[self.form.double]
        inside = [f"tl.where(m{w}[None, :], {value}, 0.0)" for value, w in values]
        self.put("most = tl.full([BM], 0.0, CT)", "squares = tl.full([BM], 0.0, CT)")
        for value in inside:
            self.put(f"most = tl.maximum(most, tl.reduce(tl.abs({value}), 1, tl.standard._elementwise_max))")
        self.put(f"scale = tl.minimum(tl.maximum({exponent_of('most.to(tl.float64)')}, {-end}), {end})")
        self.put(f"down = {two_to('-scale', self.form.double)}")
        for n, value in enumerate(inside):
            self.put(f"near{n} = {value} * down[:, None]")
            self.put(f"squares = squares + tl.reduce(near{n} * near{n}, 1, tl.standard._sum_combine)")
        self.put(f"{target} = tl.sqrt(squares.to(tl.float64)) * {two_to('scale', True)}")

    def hand_out_sizes(self, n: int) -> None:
        """Writes size0, size1, ... as what they stand for to [n, rows, T]; the states' say by how much a row shifts."""
        back = halves("-exponent", True)
        self.put(f"back1 = {back[0]}", f"back2 = {back[1]}")
        for v in range(n):
            at = f"{self.param('sizes')} + (({v} * R64 + r) * T + t)"
            self.put(f"tl.store({at}, size{v} * back1 * back2, mask=active)")
        far, whole = FAR[self.form.double], "size1"
        for j in range(2, n):
            whole = f"tl.maximum({whole}, size{j})"
        self.put(
            f"whole = {whole}",
            f"high = {exponent_of('whole')}",
            f"away = active & (whole > 0) & (whole < float('inf')) & ((high >= {far}) | (high < {-far}))",
            "shift = tl.where(away, -high, 0)",
        )
