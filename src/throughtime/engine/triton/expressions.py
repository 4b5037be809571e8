"""What each operation of a tape is in Triton: one line each, and the few functions that Triton lacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from throughtime.engine.tape import Op

# tanh near 0, where (1 - e) / (1 + e) would lose its leading digits: x + x * s * P(s) / Q(s), s = x * x (Cephes).
SMALL = 0.625
SINGLE = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
DOUBLE_P = (-9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3)
DOUBLE_Q = (1.0, 1.12811678491632931402e2, 2.23548839060100448583e3, 4.84406305325125486048e3)

Lines = list[str]


def lines_of(op: Op, target: str, args: Sequence[str], double: bool) -> Lines:
    """The statements that give `target` the value of an operation; the products and the mean are the schedule's.

    double: whether the step is computed in float64. A NaN gives a NaN; both infinities are right.
    """
    if op.name in DIRECT:
        return [f"{target} = {DIRECT[op.name](*args, *map(number, op.consts))}"]
    return _STATEMENTS[op.name](target, list(args), op.consts, double)


def number(k: float) -> str:
    """A constant as Triton reads it."""
    if math.isinf(k):
        return "float('inf')" if k > 0 else "float('-inf')"
    return f"({k!r})" if k < 0 else repr(k)


def _affine(a: str, k: str, c: str) -> str:
    scaled = f"{a} * {k}"
    return scaled if float(c.strip("()")) == 0 else f"{scaled} + {c}"


DIRECT: dict[str, Callable[..., str]] = {
    "affine": _affine,
    "add": lambda a, b: f"{a} + {b}",
    "sub": lambda a, b: f"{a} - {b}",
    "mul": lambda a, b: f"{a} * {b}",
    "div": lambda a, b: f"{a} / {b}",
    "reciprocal": lambda a: f"1.0 / {a}",
    "sqrt": lambda a: f"tl.sqrt({a})",
    "exp": lambda a: f"tl.exp({a})",
    "log": lambda a: f"tl.log({a})",
    "sin": lambda a: f"tl.sin({a})",
    "cos": lambda a: f"tl.cos({a})",
    "erf": lambda a: f"tl.erf({a})",
    "abs": lambda a: f"tl.abs({a})",
    "sign": lambda a: f"tl.where({a} > 0, 1.0, tl.where({a} < 0, -1.0, 0.0)).to(CT)",
    "sigmoid": lambda a: f"1.0 / (1.0 + tl.exp(-({a})))",
    "relu": lambda a: f"tl.where({a} <= 0, 0.0, {a})",
    "maximum": lambda a, b: f"tl.maximum({a}, {b}, propagate_nan=tl.PropagateNan.ALL)",
    "minimum": lambda a, b: f"tl.minimum({a}, {b}, propagate_nan=tl.PropagateNan.ALL)",
    "clamp": lambda a, low, high: f"tl.where({a} < {low}, {low}, tl.where({a} > {high}, {high}, {a}))",
    "heaviside": lambda a, k: f"tl.where({a} == 0, {k}, tl.where({a} > 0, 1.0, 0.0)).to(CT)",
    "select": lambda m, a, b: f"tl.where({m} != 0, {a}, {b})",
    "stop": lambda a: a,
    "clip_grad": lambda a, k: a,
    "copy": lambda a: a,
    "dsigmoid": lambda a, y: f"{a} * {y} * (1.0 - {y})",
    "dtanh": lambda a, y: f"{a} * (1.0 - {y} * {y})",
    "fma": lambda a, b, c: f"{a} * {b} + {c}",
    "fms": lambda a, b, c: f"{a} * {b} - {c}",
    "fnma": lambda a, b, c: f"{c} - {a} * {b}",
    "lerp": lambda a, b, c: f"{c} + {a} * ({b} - {c})",
    "sigmoid_fma": lambda a, b, c: f"1.0 / (1.0 + tl.exp(-({a} * {b} + {c})))",
    "mul_dsigmoid": lambda a, b, y: f"{a} * {b} * {y} * (1.0 - {y})",
    "mul_dtanh": lambda a, b, y: f"{a} * {b} * (1.0 - {y} * {y})",
    "dtanh_add": lambda a, y, c: f"{a} * (1.0 - {y} * {y}) + {c}",
    "add_dtanh": lambda a, b, y: f"({a} + {b}) * (1.0 - {y} * {y})",
}


def _horner(s: str, coefficients: Sequence[float]) -> str:
    text = number(coefficients[0])
    for k in coefficients[1:]:
        text = f"({text} * {s} + {number(k)})"
    return text


def _tanh(target: str, args: Lines, consts: Sequence[float], double: bool) -> Lines:
    a, e, s = (f"{target}{letter}" for letter in "aes")
    ratio = f"{_horner(s, DOUBLE_P)} / {_horner(s, DOUBLE_Q)}" if double else _horner(s, SINGLE)
    return [
        f"{a} = {args[0]}",
        f"{e} = tl.exp(tl.abs({a}) * -2.0)",
        f"{e} = (1.0 - {e}) / (1.0 + {e})",
        f"{s} = {a} * {a}",
        f"{target} = tl.where(tl.abs({a}) < {SMALL}, {a} + {a} * {s} * ({ratio}), tl.where({a} < 0, -{e}, {e}))",
    ]


def _tanh_fma(target: str, args: Lines, consts: Sequence[float], double: bool) -> Lines:
    return _tanh(target, [f"{args[0]} * {args[1]} + {args[2]}"], consts, double)


def _mul_tanh(target: str, args: Lines, consts: Sequence[float], double: bool) -> Lines:
    return [*_tanh(f"{target}t", args[1:], consts, double), f"{target} = {args[0]} * {target}t"]


def _softplus(target: str, args: Lines, consts: Sequence[float], double: bool) -> Lines:
    # log(1 + e) for a small e from the rounded 1 + e, whose error the quotient takes back (Kahan's log1p). Beyond 20,
    # as in torch, the argument itself.
    a, e, one = (f"{target}{letter}" for letter in "aeu")
    return [
        f"{a} = {args[0]}",
        f"{e} = tl.exp(-tl.abs({a}))",
        f"{one} = 1.0 + {e}",
        f"{e} = tl.where({one} == 1.0, {e}, tl.log({one}) * {e} / tl.where({one} == 1.0, 1.0, {one} - 1.0))",
        f"{target} = tl.where({a} > 20.0, {a}, tl.where({a} <= 0, 0.0, {a}) + {e})",
    ]


def _power(target: str, args: Lines, consts: Sequence[float], double: bool) -> Lines:
    # Whole and half exponents by multiplication and a root; any other through the logarithm, a NaN below zero.
    a, k = args[0], consts[0]
    whole, half = divmod(2 * abs(k), 2)
    if k == 0:
        return [f"{target} = tl.where({a} == {a}, 1.0, 1.0).to(CT)"]
    if half not in (0, 1) or whole > 64:
        return [f"{target} = tl.exp({number(k)} * tl.log({a}))"]
    square, left, factors = f"{target}q", int(whole), [f"tl.sqrt({a})"] * int(half)
    out = [f"{square} = {a}"]
    while left:
        if left & 1:
            out.append(f"{target} = {' * '.join([*factors, square])}")
            factors = [target]
        left >>= 1
        if left:
            out.append(f"{square} = {square} * {square}")
    if not whole:
        out = [f"{target} = {factors[0]}"]
    return [*out, f"{target} = 1.0 / {target}"] if k < 0 else out


_STATEMENTS: dict[str, Callable[[str, Lines, Sequence[float], bool], Lines]] = {
    "tanh": _tanh,
    "tanh_fma": _tanh_fma,
    "mul_tanh": _mul_tanh,
    "softplus": _softplus,
    "power": _power,
}
