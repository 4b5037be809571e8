"""Many gradients sent back through one pass by Triton kernels, side by side: the (t,k) map of the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from throughtime.engine.arrived import Arrived, Asked, Ready
from throughtime.engine.linear import LinearStep, laid_out, linear_step
from throughtime.engine.tape import Tape
from throughtime.engine.torch_backend import column_runs
from throughtime.engine.triton import kernel, schedule
from throughtime.engine.triton.analysis import Analysis, analyse
from throughtime.engine.triton.map_text import Wanted, map_texts, phases
from throughtime.engine.triton.schedule import Schedule
from throughtime.engine.triton.support import exact_products, no_room, refusal
from throughtime.engine.triton.writer import Form, Text
from throughtime.errors import BackendError

# Bytes of what arrived that are held at a time, before it is summed over the batch: rows are sent in parts.
BUDGET = 1 << 28


@dataclass(frozen=True, eq=False)
class Prepared(Ready):
    """A pass made ready: what each step multiplies by, the step as a linear map, and the weights.

    dtype: in what the kernels compute, float64 or float32. The range is that of float64 either way, for every row is
    kept near 1 by a power of two of its own.
    """

    T: int
    B: int
    H: int
    P: int
    dtype: torch.dtype
    step: LinearStep
    analysis: Analysis
    widths: tuple[str, ...]
    kept: Tensor
    units: list[Tensor]
    U: Tensor
    W: Tensor
    matrices: list[Tensor]
    lengths: Tensor | None
    reverse: bool
    truncated: bool

    @property
    def states(self) -> list[int]:
        """The width of each state."""
        return [self.P, *[self.H] * (len(self.step.totals) - 1)]

    def _send(self, asked: Asked) -> Arrived:
        loss_steps, direct, above, want_dx, slope, want_values, each = asked
        T, B, S, N = self.T, self.B, len(self.states), len(loss_steps)
        like = self.kept
        direct, above = ([None] * S if g is None else [_plain(v) for v in g] for g in (direct, above))
        sizes = like.new_zeros((1 + S, B, N, T) if each else (1 + S, N, T), dtype=torch.float64)
        dx = like.new_zeros(N, T, B, self.W.shape[1], dtype=torch.float64) if want_dx else None
        widths = [len(self.step.tape.columns) * self.H, *self.states]
        values = [like.new_zeros(N, T, B, w, dtype=torch.float64) for w in widths] if want_values else None
        enters = self._starts(loss_steps, direct, above)
        order = [n for n in sorted(range(N), key=lambda n: enters[n]) if enters[n] < T]
        row = B * T * 8 * (1 + S + (sum(widths) if want_dx or want_values else 0))
        some = max(1, BUDGET // max(1, row))
        with no_room(like), torch.no_grad():
            for first in range(0, len(order) if B else 0, some):
                part = order[first : first + some]
                found, arrived = self._rows(part, [loss_steps[n] for n in part], [enters[n] for n in part],
                                            direct, above, want_dx or want_values)  # fmt: skip
                at = torch.tensor(part, device=like.device)
                if each:
                    sizes[:, :, at] = found.transpose(1, 2)
                else:
                    sizes[:, at] = _joined(found)
                if values is not None:
                    for whole, v in zip(values, arrived, strict=True):
                        whole[at] = v
                if dx is not None:
                    back = torch.matmul(arrived[0][..., : self.W.shape[0]], self.W.double())
                    dx[at] = back if slope is None else back * slope
        return Arrived(sizes, dx, values)

    def _starts(self, loss_steps, direct, above) -> list[int]:
        """How many steps of the walk back are done before a row begins: when something first enters it."""
        T, directly = self.T, any(v is not None for v in direct)
        starts = [(t if self.reverse else T - 1 - t) if directly else T for t in loss_steps]
        for v in [v for v in above if v is not None]:
            enters = (v != 0).flatten(2).any(2)
            enters = enters if self.reverse else enters.flip(1)
            found = torch.where(enters.any(1), enters.int().argmax(1), T).tolist()
            starts = [min(pair) for pair in zip(starts, found, strict=True)]
        return starts

    def _rows(self, part, losses, enters, direct, above, want) -> tuple[Tensor, list[Tensor]]:
        """Sizes [1 + S, n, B, T] of some rows, in the order in which they begin; what arrived, [n, T, B, .] each."""
        T, B, n, like = self.T, self.B, len(part), self.kept
        widths = [len(self.step.tape.columns) * self.H, *self.states]
        wanted = Wanted(tuple(v is not None for v in direct), tuple(v is not None for v in above), want)
        s = schedule.choose_map(n * B, self.H, self.P, self._weights(), self.dtype.itemsize, like.device)
        form = Form(s.mode, self.lengths is not None, self.reverse, self.dtype == torch.float64, self.H == self.P,
                    truncated=self.truncated)  # fmt: skip
        texts = map_texts(form, self.analysis, self.step, self.widths, wanted)
        sizes = like.new_zeros(1 + len(self.states), n, B, T, dtype=torch.float64)
        arrived = [like.new_zeros(n, T, B, w, dtype=torch.float64) for w in (widths if want else ())]
        given: dict[str, Any] = {"T": T, "B": B, "R": n * B, "kept": self.kept, "U": self.U, "sizes": sizes}
        for name, numbers in (("asked", part), ("losses", losses), ("starts", enters)):
            given[name] = torch.tensor(numbers, dtype=torch.int32, device=like.device)
        if self.lengths is not None:
            given["lengths"] = self.lengths.contiguous()
        for name, group in (("unit", self.units), ("matrix", self.matrices), ("values", arrived),
                            ("direct", direct), ("above", above)):  # fmt: skip
            given |= {f"{name}{j}": v for j, v in enumerate(group) if v is not None}
        self._run(texts, s, given, n, enters)
        return sizes, arrived

    def _run(self, texts: Sequence[Text], s: Schedule, given: dict[str, Any], n: int, enters: list[int]) -> None:
        tile = {"BM": s.rows, "BH": s.H, "BP": s.P, "BK": s.depth, "SPLIT": 1, "TILES": 1}
        like = self.kept
        constants = kernel.constants_of(self.dtype, self.dtype, not like.is_cuda, H=self.H, P=self.P, **tile)
        constants["PRECISION"] = "ieee"  # what is measured shall not depend on how products are rounded in training
        if s.mode == "alone":
            kernel.launch(texts[0], (-(-n * self.B // s.rows), 1), given, constants, s.how)
            return
        given |= self._tables(n * self.B, texts)
        d0, dz = given["d0_at"], given.get("dz")
        with exact_products():
            for step in range(enters[0], self.T):
                rows = sum(e <= step for e in enters) * self.B
                for phase, text in enumerate(texts):
                    grid = (-(-rows // s.rows), 1)
                    kernel.launch(text, grid, {**given, "begin": step, "R": n * self.B}, constants, s.how)
                    self._products(phase, rows, given)
                if dz is not None:
                    for (c0, c1), (h0, h1) in column_runs(self.step.tape.columns):
                        H = self.H
                        d0[:rows].addmm_(dz[:rows, c0 * H : c1 * H], self.U[h0 * H : h1 * H])

    def _products(self, phase: int, rows: int, given: dict[str, Any]) -> None:
        """The products of the step itself with the cell's own matrices, between two phases of it."""
        for v, waits in enumerate(phases(self.analysis)):
            if waits == phase + 1 and v >= len(self.step.tape.inputs) and f"product{v}" in given:
                j, plain = self.analysis.matrix(v)
                source, m = given[f"given{self.analysis.op(v).args[0]}"], self.matrices[j]
                torch.matmul(source[:rows], m if plain else m.mT, out=given[f"product{v}"][:rows])

    def _tables(self, R: int, texts: Sequence[Text]) -> dict[str, Tensor]:
        """What one launch leaves for the next."""
        like, made = self.kept, {}
        for j, w in enumerate(self.states):
            made[f"d{j}_at"] = like.new_zeros(R, w)
        for name in ("exponent", "shift", "empty"):
            made[f"{name}_at"] = torch.full((R,), int(name == "empty"), dtype=torch.int32, device=like.device)
        for name in {name for text in texts for name in text.params}:
            kind, number = name.rstrip("0123456789"), name[len(name.rstrip("0123456789")) :]
            if kind in ("given", "product", "cross"):
                made[name] = like.new_zeros(R, self.H if self.analysis.widths[int(number)] == "H" else self.P)
            elif name == "dz":
                made[name] = like.new_zeros(R, len(self.step.tape.columns) * self.H)
        return made

    def _weights(self) -> int:
        """How many [H, P] matrices a step multiplies by."""
        recurrent = 0 if self.truncated else sum(c.h is not None for c in self.step.tape.columns)
        return recurrent + sum(op.name in ("linear", "linear_t") for op in self.step.tape.ops)


def prepare(
    tape: Tape,
    z: Tensor,
    W: Tensor,
    U: Tensor,
    units: Sequence[Tensor],
    matrices: Sequence[Tensor],
    before: Sequence[Tensor],
    lengths: Tensor | None,
    reverse: bool,
    truncated: bool,
    dtype: torch.dtype = torch.float64,
) -> Prepared:
    """Makes a pass ready: z [T, B, C * H] are its net inputs, before [T, B, .] its states before each step.

    Raises BackendError for what the kernels cannot take.
    """
    why = refusal(z, W, U, matrices, before)
    if why is not None:
        raise BackendError(f'{why}; choose backend="torch"')
    if dtype not in (torch.float32, torch.float64):
        raise BackendError(f"the gradient is followed in float64 or float32; came {dtype}")
    T, B = z.shape[:2]
    H, P = z.shape[2] // len(tape.columns), before[0].shape[-1]
    step = linear_step(tape)
    with no_room(z):
        kept, kept_widths, unit_values = laid_out(
            step, z, before, units, matrices, range(len(tape.columns)), lambda n: n, dtype
        )
    widths = tuple("H" if w == H else "P" for w in kept_widths)
    shapes = [(int(m.shape[0]), int(m.shape[1])) for m in matrices]

    def plain(v: Tensor) -> Tensor:
        return v.detach().to(dtype).contiguous()

    return Prepared(
        T, B, H, P, dtype, step, analyse(step.tape, H, P, shapes, widths), widths, kept, unit_values, plain(U),
        plain(W), [plain(m) for m in matrices], lengths, reverse, truncated,
    )  # fmt: skip


def _plain(v: Tensor | None) -> Tensor | None:
    return None if v is None else v.detach().to(torch.float64).contiguous()


def _joined(sizes: Tensor) -> Tensor:
    """Sizes [.., B, T] over the batch, without a square that leaves the range of float64."""
    largest = sizes.amax(-2, keepdim=True)
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    return (sizes / scale).norm(dim=-2) * scale.squeeze(-2)
