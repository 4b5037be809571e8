"""From the text of a kernel to a launch: compiled for a GPU, or run by Triton's interpreter where the tensors are not
on one."""

from __future__ import annotations

import hashlib
import importlib.util
import linecache
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from throughtime.engine.triton.writer import CONSTANTS, Text
from throughtime.errors import BackendError

LINES = {torch.float64: "float64", torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


@lru_cache(maxsize=1)
def installed() -> bool:
    """Whether Triton is there; it comes with torch's builds for NVIDIA GPUs."""
    return importlib.util.find_spec("triton") is not None


def plain_function(text: Text) -> Any:
    """The kernel as a Python function whose source Triton can read; one for each text."""
    return _function(text.source, text.name)


@lru_cache(maxsize=4096)
def _function(source: str, name: str) -> Any:
    import triton.language as tl

    from throughtime.engine.triton.combine import follow

    key = hashlib.sha256(source.encode()).hexdigest()[:16]
    file = f"<throughtime kernel {name} {key}>"
    # Triton reads a kernel's source through linecache, as the debugger and the traceback do.
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    space: dict[str, Any] = {"tl": tl, "follow": follow, "__name__": f"throughtime_kernel_{key}"}
    exec(compile(source, file, "exec"), space)
    return space[name]


@lru_cache(maxsize=4096)
def compiled(text: Text) -> Any:
    """The kernel as Triton compiles it. Numbers of steps and rows are not compiled in."""
    from triton.runtime.jit import JITFunction

    changing = [p for p in text.params if p in ("T", "B", "R", "begin", "end", "start") or p.startswith("stride_")]
    return JITFunction(plain_function(text), do_not_specialize=changing)


def constants_of(low: torch.dtype, full: torch.dtype, interpreted: bool, **sizes: int) -> dict[str, Any]:
    """The compile-time arguments: sizes and dtypes. The interpreter multiplies bf16 numbers as the float32 they are."""
    import triton.language as tl

    products = torch.float32 if interpreted and low == torch.bfloat16 else low
    dtypes = {"CT": full, "LOW": low, "DOT": products}
    return {**sizes, **{k: getattr(tl, LINES[v]) for k, v in dtypes.items()}}


class How(NamedTuple):
    """How a kernel is compiled and launched, by the names that Triton has for it.

    maxnreg: registers that a thread may have; without it the assembler guesses how many programs should share a
    multiprocessor, and where its guess is high it spills what there is room for.
    """

    num_warps: int
    num_stages: int
    launch_cooperative_grid: bool = False
    maxnreg: int | None = None


def launch(
    text: Text, grid: tuple[int, int], arguments: Mapping[str, Any], constants: Mapping[str, Any], how: How
) -> None:
    """Runs a kernel on the current stream of its tensors' device, or, for tensors in main memory, interpreted.

    Raises BackendError where the device has not room enough for the kernel, and where there is no C compiler.
    """
    values = [arguments[p] for p in text.params]
    fixed = {c: constants[c] for c in CONSTANTS}
    device = next(v.device for v in values if isinstance(v, Tensor))
    if device.type != "cuda":
        interpret(text, grid, values, fixed)
        return
    with _told(text, grid), torch.cuda.device(device):
        compiled(text)[grid](*values, **fixed, **how._asdict())


def spilt(text: Text, arguments: Mapping[str, Any], constants: Mapping[str, Any], how: How) -> int:
    """Bytes that a thread of a kernel keeps in memory for want of registers, as compiled for the device of its tensors.

    A very large number for a kernel that the device has no room for. Its launch after that compiles nothing anew.
    """
    from triton.runtime.errors import OutOfResources

    values = [arguments[p] for p in text.params]
    device = next(v.device for v in values if isinstance(v, Tensor))
    fixed = {c: constants[c] for c in CONSTANTS}
    with _told(text, (1, 1)), torch.cuda.device(device):
        made = compiled(text).warmup(*values, grid=(1,), **fixed, **how._asdict())
        if not hasattr(made, "_init_handles"):
            return 0  # a Triton that does not say it: the first schedule stays
        try:
            made._init_handles()  # which loads it; only then does the driver know
        except OutOfResources:
            return sys.maxsize
    return 4 * made.n_spills


@contextmanager
def _told(text: Text, grid: tuple[int, int]) -> Iterator[None]:
    """Says what to do where the machine lacks something that a launch needs."""
    from triton.runtime.errors import OutOfResources

    try:
        yield
    except (OutOfResources, RuntimeError) as err:
        if "C compiler" in str(err):
            raise BackendError(
                f"Triton compiles a few lines of C for a kernel's launch ({str(err).splitlines()[0]}); "
                'install gcc or clang, or choose backend="torch"'
            ) from None
        room = "[CUDA]" in str(err) and any(word in str(err) for word in ("cooperative", "out of memory"))
        if not room and not isinstance(err, OutOfResources):
            raise
        raise BackendError(
            f"the GPU has not room enough for the kernel {text.name} on {grid[0]} x {grid[1]} programs ({err}); "
            'choose backend="torch"'
        ) from None


def interpret(text: Text, grid: Sequence[int], values: Sequence[Any], fixed: Mapping[str, Any]) -> None:
    """Runs a kernel program after program, in Python, on tensors in main memory."""
    import numpy as np
    from triton.runtime.interpreter import GridExecutor

    function = _rewritten(text)
    numbers = [v if isinstance(v, Tensor) else _scalar(v) for v in values]
    annotated = dict.fromkeys(CONSTANTS, "constexpr")
    function.__annotations__.update(annotated)
    with np.errstate(all="ignore"), _to_nearest():  # a GPU divides by zero without a word, as beyond the last unit
        GridExecutor(function, [*text.params, *CONSTANTS], tuple(grid))(*numbers, **fixed)


@contextmanager
def _to_nearest() -> Iterator[None]:
    """Numbers become bfloat16 by rounding to the nearest, as on a GPU; the interpreter by itself cuts them off."""
    from triton.runtime import interpreter

    cut = interpreter._convert_float

    def convert(data, source, target, mode):
        if (str(source), str(target)) != ("fp32", "bf16"):
            return cut(data, source, target, mode)
        return torch.from_numpy(data.copy()).to(torch.bfloat16).view(torch.uint16).numpy()

    interpreter._convert_float = convert
    try:
        yield
    finally:
        interpreter._convert_float = cut


@lru_cache(maxsize=4096)
def _rewritten(text: Text) -> Any:
    from triton.runtime.interpreter import InterpretedFunction

    return InterpretedFunction(plain_function(text)).rewrite()


def _scalar(n: int) -> Any:
    # A number of no dimensions: what Triton's interpreter makes of an int, an array of one, numpy no longer takes as
    # the bound of a loop.
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    dtype, kind = (np.int32, tl.int32) if -(2**31) <= n < 2**31 else (np.int64, tl.int64)
    return tl.tensor(TensorHandle(np.array(n, dtype=dtype), kind), kind)
