"""A step as the kernels run it: instructions, products of whole rows, and the places where values stand."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

# The codes of the kernels, in the order of ops.h.
CODES = (
    "affine", "add", "sub", "mul", "div", "reciprocal", "power", "sqrt", "exp", "log", "sin", "cos", "erf",
    "abs", "sign", "tanh", "sigmoid", "relu", "softplus", "maximum", "minimum", "clamp", "heaviside", "select",
    "dsigmoid", "dtanh", "copy", "fma", "fms", "fnma", "lerp", "tanh_fma", "sigmoid_fma", "mul_tanh",
    "mul_dsigmoid", "mul_dtanh", "dtanh_add", "add_dtanh", "sum", "sum_mul",
)  # fmt: skip
CODE = {name: k for k, name in enumerate(CODES)}
WHOLE_ROW = ("linear", "linear_t", "mean")


class Kind(IntEnum):
    """Where a value stands; the enum of interface.h."""

    TEMP = 0
    Z = 1
    OLD = 2
    NEW = 3
    UNIT = 4
    KEPT = 5
    DY = 6
    DS = 7
    DZ = 8
    DUNIT = 9
    STEP = 10
    CHUNK = 11


Place = tuple[Kind, int]


class Instruction(NamedTuple):
    """An element-wise operation: d = code(args, consts) over `width` units, at a stage of the step."""

    code: int
    d: Place
    args: tuple[Place, ...]
    consts: tuple[float, ...]
    width: int
    stage: int


class WholeRow(NamedTuple):
    """A product with a matrix or (matrix < 0) a mean over units, at the entry of a stage."""

    stage: int
    matrix: int
    turned: bool
    source: Place
    source_width: int
    d: Place
    width: int


@dataclass
class Program:
    """An optimised tape with a place for each value."""

    instructions: list[Instruction] = field(default_factory=list)
    whole_rows: list[WholeRow] = field(default_factory=list)
    step_widths: list[int] = field(default_factory=list)
    chunk_widths: list[int] = field(default_factory=list)
    kept_widths: list[int] = field(default_factory=list)
    pairs: list[tuple[int, Place, Place]] = field(default_factory=list)  # matrix, left, right
    stages: int = 1
    temps: int = 0
    ds_written: int = 0
    dz_written: int = 0


@dataclass(frozen=True)
class Sizes:
    """What widths follow from: H, the width of each state, and the shape of each matrix."""

    H: int
    states: tuple[int, ...]
    matrices: tuple[tuple[int, int], ...]
