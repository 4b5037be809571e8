"""The backends behind the operator, and the rule by which one is chosen."""

from __future__ import annotations

import os
from types import ModuleType

import torch

from throughtime.engine import cpu, torch_backend
from throughtime.errors import BackendError

# Each is a module with forward, backward and saved_width, which have the same arguments and results.
BACKENDS: dict[str, ModuleType] = {"cpu": cpu, "torch": torch_backend}
NAMES = ("auto", *BACKENDS, "reference")
VARIABLE = "THROUGHTIME_BACKEND"


def why_not(name: str, device: str, dtype: torch.dtype, products: torch.dtype) -> str | None:
    """What keeps a backend from running states of `dtype` with products in `products` on a device; None if nothing."""
    if dtype.is_complex:
        return f"a traced step is differentiated as one of real numbers, these are {dtype}"
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
    """The backend that runs, and why: "cpu" where its kernels can, else "torch"; or the one that was asked for.
    Complex numbers run on the "reference".

    The environment variable THROUGHTIME_BACKEND takes the place of "auto". Raises BackendError for a backend that does
    not exist, or that was asked for and cannot do this.
    """
    reason = "it was asked for"
    if wanted == "auto" and os.environ.get(VARIABLE):
        wanted, reason = os.environ[VARIABLE], f"{VARIABLE} asks for it"
    if wanted not in NAMES:
        raise BackendError(f"unknown backend {wanted!r}; it must be one of {', '.join(NAMES)}")
    if wanted == "auto" and dtype.is_complex:
        return "reference", str(why_not("torch", device, dtype, products))
    if wanted == "auto":
        obstacle = why_not("cpu", device, dtype, products)
        return ("cpu", "the CPU kernels run any traced cell") if obstacle is None else ("torch", f"not cpu: {obstacle}")
    if wanted in BACKENDS:
        obstacle = why_not(wanted, device, dtype, products)
        if obstacle is not None:
            raise BackendError(f'the backend {wanted!r} cannot run this: {obstacle}; choose backend="auto"')
    return wanted, reason
