"""The backends behind the operator, and the rule by which one is chosen."""

from __future__ import annotations

import os
from functools import lru_cache
from types import ModuleType

import torch

from throughtime.engine import cpu, torch_backend, triton
from throughtime.errors import BackendError

# Each is a module with forward, backward and saved_width, which have the same arguments and results.
BACKENDS: dict[str, ModuleType] = {"cpu": cpu, "triton": triton, "torch": torch_backend}
NAMES = ("auto", *BACKENDS, "reference")
VARIABLE = "THROUGHTIME_BACKEND"
UNTIMED = 'its kernels can run this, but have been timed on no GPU yet; backend="triton" asks for them'
# What the forward pass keeps for the backward pass; see `unroll`.
MEMORY = ("fast", "low")


def why_not(name: str, device: str, dtype: torch.dtype, products: torch.dtype) -> str | None:
    """What keeps a backend from running states of `dtype` with products in `products` on a device; None if nothing."""
    if dtype.is_complex:
        return f"a traced step is differentiated as one of real numbers, these are {dtype}"
    if name == "triton":
        return triton.why_not(device, dtype, products)
    if name != "cpu":
        return None
    if device != "cpu":
        return f"its kernels run on the CPU, the tensors are on {device}"
    if dtype not in (torch.float32, torch.float64):
        return f"its kernels keep states in float32 or float64, these are {dtype}"
    if products != dtype and (dtype, products) != (torch.float32, torch.bfloat16):
        return (
            f"its kernels multiply in the states' dtype or in bfloat16 beside float32, here {products} beside {dtype}"
        )
    return None


@torch.compiler.assume_constant_result
def choose(wanted: str, device: str, dtype: torch.dtype, products: torch.dtype) -> tuple[str, str]:
    """The backend that runs, and why: "cpu" where its kernels can, else "torch"; or the one that was asked for, as
    "triton" must be until its schedules have been timed. Complex numbers run on the "reference".

    The environment variable THROUGHTIME_BACKEND takes the place of "auto". Raises BackendError for a backend that does
    not exist, or that was asked for and cannot do this.
    """
    return _choose(wanted, os.environ.get(VARIABLE), device, dtype, products)


@lru_cache(maxsize=256)
def _choose(
    wanted: str, variable: str | None, device: str, dtype: torch.dtype, products: torch.dtype
) -> tuple[str, str]:
    reason = "it was asked for"
    if wanted == "auto" and variable:
        wanted, reason = variable, f"{VARIABLE} asks for it"
    if wanted not in NAMES:
        raise BackendError(f"unknown backend {wanted!r}; it must be one of {', '.join(NAMES)}")
    if wanted == "auto" and dtype.is_complex:
        return "reference", str(why_not("torch", device, dtype, products))
    if wanted == "auto":
        name = "triton" if device == "cuda" else "cpu"
        obstacle = why_not(name, device, dtype, products)
        if obstacle is None and name == "cpu":
            return name, "the CPU kernels run any traced cell"
        return "torch", f"not {name}: {obstacle or UNTIMED}"
    if wanted in BACKENDS:
        obstacle = why_not(wanted, device, dtype, products)
        if obstacle is not None:
            raise BackendError(f'the backend {wanted!r} cannot run this: {obstacle}; choose backend="auto"')
    return wanted, reason


def check_memory(memory: str, backend: str, why: str) -> None:
    """Raises BackendError for a choice of memory that is none, or that a backend (chosen because of `why`) lacks."""
    if memory not in MEMORY:
        raise BackendError(f"unknown memory {memory!r}; it must be one of {', '.join(MEMORY)}")
    if memory == "low" and backend == "reference":
        raise BackendError(
            f'memory="low" needs the traced step; the reference backend keeps the graph of every step ({why}); '
            'choose memory="fast", or another backend'
        )
