"""Whether a file computes what its model computes: both are run on random inputs at several sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from throughtime.errors import ExportError

Runner = Callable[[tuple], list[Tensor]]
"""What was written: from the arguments of a call to its outputs, flat."""

ROUNDS = 5
"""Sizes that are tried besides those of the example: 1 everywhere, and others drawn from 1 to `LARGEST`."""
LARGEST = 9
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""By the dtype of an output, of the largest number in it, or of 1 if that is smaller; `COARSE` for shorter floats."""
COARSE = 2e-2


def free_sizes(traced: ExportedProgram) -> list[Any]:
    """The symbols of the sizes that may be other ones, in the order in which the inputs have them."""
    found: list[Any] = []
    for value in _inputs(traced):
        for size in value.shape:
            if isinstance(size, torch.SymInt):
                found += [s for s in sorted(size.node.expr.free_symbols, key=str) if s not in found]
    return found


def check(model: nn.Module, runner: Runner, traced: ExportedProgram, example: tuple) -> float:
    """The largest difference between an output of the runner and of the model.

    Raises ExportError where one is too large, or where the runner refuses what the model takes.
    """
    worst, ran, generator = 0.0, 0, Generator().manual_seed(0)
    for sizes in _sizes(traced, generator):
        args = _drawn(traced, example, sizes, generator)
        shown = ", ".join(str(list(v.shape)) for v in pytree.tree_leaves(args))
        try:
            wanted = pytree.tree_leaves(model(*args))
        except Exception:  # sizes that the model itself does not take need not work
            continue
        try:
            found = runner(args)
        except Exception as error:
            why = " ".join(str(error).split())[:300]
            raise ExportError(
                f"what was written does not take inputs {shown}, which the model takes ({why}); nothing was kept"
            ) from error
        ran += 1
        worst = max([worst, *(_difference(a, b, shown) for a, b in zip(found, wanted, strict=True))])
    if not ran:
        raise ExportError("the model does not run on random inputs, so that nothing could be checked; nothing was kept")
    return worst


def _difference(found: Tensor, wanted: Tensor, shown: str) -> float:
    if found.shape != wanted.shape:
        raise ExportError(
            f"what was written gives {list(found.shape)} where the model gives {list(wanted.shape)}, for inputs "
            f"{shown}; nothing was kept"
        )
    if not wanted.is_floating_point():
        if not torch.equal(found, wanted):
            raise ExportError(
                f"what was written gives other whole numbers than the model, for {shown}; nothing was kept"
            )
        return 0.0
    a, b = found.double(), wanted.double()
    largest = float(b[b.isfinite()].abs().max()) if bool(b.isfinite().any()) else 0.0
    allowed = TOLERANCE.get(wanted.dtype, COARSE) * max(1.0, largest)
    if not torch.allclose(a, b, rtol=0, atol=allowed, equal_nan=True):
        raise ExportError(
            f"what was written differs from the model by {float((a - b).abs().max()):.3g}, more than {allowed:.1g}, "
            f"for inputs {shown}; nothing was kept"
        )
    both = (a - b).abs()
    return float(both[both.isfinite()].max()) if bool(both.isfinite().any()) else 0.0


def _inputs(traced: ExportedProgram) -> list[Tensor]:
    names = list(traced.graph_signature.user_inputs)
    values = {node.name: node.meta["val"] for node in traced.graph.nodes if node.op == "placeholder"}
    return [values[name] for name in names]


def _sizes(traced: ExportedProgram, generator: Generator) -> Iterator[dict[Any, int]]:
    """A number for each free size, round by round: those of the example, 1 everywhere, others."""
    symbols = free_sizes(traced)
    yield {}
    if not symbols:
        return
    yield dict.fromkeys(symbols, 1)
    for _ in range(ROUNDS - 1):
        drawn = torch.randint(1, LARGEST + 1, (len(symbols),), generator=generator).tolist()
        yield dict(zip(symbols, drawn, strict=True))


def _drawn(traced: ExportedProgram, example: tuple, sizes: dict[Any, int], generator: Generator) -> tuple:
    """Arguments of these sizes (of the example's where there are none), filled at random."""
    leaves, structure = pytree.tree_flatten(example)
    made = []
    for value, symbolic in zip(leaves, _inputs(traced), strict=True):
        shape = [_size(n, k, sizes) for n, k in zip(symbolic.shape, value.shape, strict=True)]
        if value.is_floating_point():
            made.append(torch.randn(shape, generator=generator, dtype=torch.float32).to(value.dtype))
        else:
            which = torch.randint(value.numel(), shape, generator=generator)
            made.append(value.flatten()[which])
    return pytree.tree_unflatten(made, structure)


def _size(symbolic: Any, here: int, sizes: dict[Any, int]) -> int:
    if not sizes or not isinstance(symbolic, torch.SymInt):
        return here
    return int(symbolic.node.expr.subs(sizes))
