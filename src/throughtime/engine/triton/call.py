"""One pass of one tape: its schedule, its kernels, and the tables they share, run over all steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from throughtime.engine.optimise import Split, inference, split
from throughtime.engine.tape import Tape
from throughtime.engine.triton import kernel, schedule
from throughtime.engine.triton.analysis import Analysis, analyse
from throughtime.engine.triton.schedule import LEAST, Schedule
from throughtime.engine.triton.support import rounds_to_tf32
from throughtime.engine.triton.writer import Form, Text

Shapes = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Sizes:
    """The sizes of a pass; the first state has P units, the others H."""

    T: int
    B: int
    H: int
    P: int
    matrices: Shapes

    def of(self, w: str) -> int:
        return self.H if w == "H" else self.P

    def states(self, n: int) -> list[int]:
        return [self.P, *[self.H] * (n - 1)]


def sizes_of(x: Tensor, b: Tensor, tape: Tape, states: Sequence[Tensor], matrices: Sequence[Tensor]) -> Sizes:
    shapes = tuple((int(m.shape[0]), int(m.shape[1])) for m in matrices)
    return Sizes(x.shape[0], x.shape[1], b.shape[0] // len(tape.columns), states[0].shape[1], shapes)


@lru_cache(maxsize=512)
def parts(tape: Tape) -> Split:
    """The step cut in two at what is kept, for a loss that may see every state."""
    return split(tape, (True,) * len(tape.names("s")))


@lru_cache(maxsize=512)
def forward_analysis(tape: Tape, save: bool, H: int, P: int, matrices: Shapes) -> Analysis:
    return analyse(parts(tape).forward if save else inference(tape), H, P, matrices)


@lru_cache(maxsize=512)
def kept_widths(tape: Tape, H: int, P: int, matrices: Shapes) -> tuple[str, ...]:
    """The width of each value that the forward pass keeps."""
    found = forward_analysis(tape, True, H, P, matrices)
    return tuple(found.widths[o.values[0]] for o in found.tape.outputs if o.kind == "k")


@lru_cache(maxsize=512)
def backward_analysis(tape: Tape, H: int, P: int, matrices: Shapes) -> Analysis:
    return analyse(parts(tape).backward, H, P, matrices, kept_widths(tape, H, P, matrices))


@dataclass(frozen=True)
class Precision:
    """full: the dtype of the step and of what is carried; low: of the products; how float32 products are rounded."""

    full: torch.dtype
    low: torch.dtype
    float32: str

    @property
    def wide(self) -> bool:
        return self.full == torch.float64


def precision_of(states: Sequence[Tensor], W: Tensor) -> Precision:
    """States in 16 bits are carried in float32; float32 products follow torch's own setting for matrix products."""
    full = torch.float64 if states[0].dtype == torch.float64 else torch.float32
    tf32 = full == W.dtype == torch.float32 and W.is_cuda and rounds_to_tf32()
    return Precision(full, W.dtype, "tf32" if tf32 else "ieee")


def exchanges(analysis: Analysis, recurrent: bool) -> bool:
    return recurrent or analysis.n_stages > 1


def schedule_of(
    analysis: Analysis, sizes: Sizes, recurrent: int, low: torch.dtype, scans: bool, device: torch.device
) -> Schedule:  # fmt: skip
    """The schedule for a pass; recurrent: how many blocks of U its steps multiply by."""
    products = sum(op.name in ("linear", "linear_t") for op in analysis.tape.ops)
    return schedule.choose(
        sizes.B, sizes.H, sizes.P, recurrent + products, low.itemsize, exchanges(analysis, recurrent > 0), scans, device
    )


def form_of(
    s: Schedule, sizes: Sizes, p: Precision, lengths: Tensor | None, reverse: bool, truncated: bool = False
) -> Form:  # fmt: skip
    return Form(
        s.mode, lengths is not None, reverse, p.wide, sizes.H == sizes.P,
        s.chunks(sizes.H, sizes.P) if s.held else (1, 1), s.held, truncated, s.split, s.parts, 1 + (s.rows == LEAST),
    )  # fmt: skip


Texts = Callable[[Schedule], tuple[Text, ...]]
# The schedules that were found to spill, and those that were not: what runs in place of each.
_SETTLED: dict[tuple[Text, Schedule, Precision, torch.device], Schedule] = {}


def run(
    texts_of: Texts,
    s: Schedule,
    analysis: Analysis,
    sizes: Sizes,
    p: Precision,
    given: dict[str, Any],
    like: Tensor,
) -> None:
    """Runs the kernels over all steps. texts_of: the kernels by schedule; given: arguments by name; tables that only
    the kernels see are made here.

    On a GPU a schedule whose kernel has not registers enough gives way to one of fewer rows, if that has.
    """
    texts = texts_of(s)
    fewer = schedule.with_least_rows(s, sizes.B, like.device) if like.is_cuda else None
    if fewer is not None:
        key = (texts[0], s, p, like.device)
        if key not in _SETTLED:
            _SETTLED[key] = _settled(texts_of, s, fewer, analysis, sizes, p, given, like)
        if _SETTLED[key] is not s:
            s, texts = _SETTLED[key], texts_of(_SETTLED[key])
    arguments, constants = _arguments(texts, s, analysis, sizes, p, given, like)
    batches = sizes.B if s.mode == "scan" else -(-sizes.B // s.rows)
    if s.mode == "together":
        for start in range(0, batches, s.batch):
            grid = (min(s.batch, batches - start), s.tiles)
            arguments["start"] = start
            kernel.launch(texts[0], grid, arguments, constants, s.how)
        return
    grid = (batches, s.tiles)
    if s.mode in ("alone", "scan"):
        kernel.launch(texts[0], grid, arguments, constants, s.how)
        return
    for step in range(sizes.T):
        arguments["begin"], arguments["end"] = step, step + 1
        for text in texts:
            kernel.launch(text, grid, arguments, constants, s.how)


def _settled(
    texts_of: Texts, s: Schedule, fewer: Schedule, analysis: Analysis, sizes: Sizes, p: Precision,
    given: dict[str, Any], like: Tensor,
) -> Schedule:  # fmt: skip
    """The schedule that spills less of the two; the first where it spills hardly anything: then it compiles alone."""

    def spilt(one: Schedule) -> int:
        texts = texts_of(one)
        return kernel.spilt(texts[0], *_arguments(texts, one, analysis, sizes, p, given, like), one.how)

    found = spilt(s)
    return s if found <= schedule.SPILT or spilt(fewer) >= found else fewer


def _arguments(
    texts: Sequence[Text], s: Schedule, analysis: Analysis, sizes: Sizes, p: Precision, given: dict[str, Any],
    like: Tensor,
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """What the kernels take: arguments by name, and what is compiled in."""
    tile = {"BM": s.rows, "BH": s.H, "BP": s.P, "BK": s.depth, "SPLIT": s.split, "TILES": s.tiles}
    constants = kernel.constants_of(p.low, p.full, not like.is_cuda, H=sizes.H, P=sizes.P, **tile)
    constants["PRECISION"] = p.float32
    arguments: dict[str, Any] = {"T": sizes.T, "B": sizes.B, "begin": 0, "end": sizes.T, "start": 0, **given}
    arguments |= tables(texts, analysis, sizes, p, like)
    if s.mode == "together":
        counters = -(-sizes.B // s.rows) * 32
        arguments["arrivals"] = torch.zeros(counters, dtype=torch.int32, device=like.device)
    return arguments, constants


def tables(texts: Sequence[Text], analysis: Analysis, sizes: Sizes, p: Precision, like: Tensor) -> dict[str, Tensor]:
    """What programs hand each other: whole rows of a value, twice, for this step and the one before; and what one part
    of a step leaves for the next."""
    made: dict[str, Tensor] = {}
    for name in {name for text in texts for name in text.params}:
        kind, number = name.rstrip("0123456789"), name[len(name.rstrip("0123456789")) :]
        if kind not in ("given", "whole", "cross", "product"):
            continue
        width = sizes.H if kind == "product" else sizes.of(analysis.widths[int(number)])
        rows = (2,) if kind in ("given", "whole") else ()
        made[name] = like.new_empty(*rows, sizes.B, width, dtype=p.low if kind == "given" else p.full)
    return made
