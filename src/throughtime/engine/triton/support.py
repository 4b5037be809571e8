"""What the Triton backend can run, and clear words for what it cannot."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from throughtime.engine.triton import kernel
from throughtime.errors import BackendError

PRODUCTS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTERPRETER = "TRITON_INTERPRET"


def interpreting() -> bool:
    """Whether tensors in main memory may be run by Triton's interpreter: slow, and meant for tests."""
    return os.environ.get(INTERPRETER, "0") in ("1", "true", "on", "yes")


def why_not(device: str, dtype: torch.dtype, products: torch.dtype) -> str | None:
    """What keeps the backend from states of `dtype` with products in `products` on a device; None if nothing."""
    if device != "cuda" and not (device == "cpu" and interpreting()):
        return f"its kernels run on NVIDIA GPUs, the tensors are on {device}"
    if not kernel.installed():
        return "Triton is not installed; it comes with torch's builds for NVIDIA GPUs, or by pip install triton"
    if dtype not in PRODUCTS or (products != dtype and (dtype, products) not in _mixed()):
        return (
            "its kernels multiply in the states' dtype (float64, float32, bfloat16, float16), or in bfloat16 or "
            f"float16 beside float32, here {products} beside {dtype}"
        )
    return _hardware() if device == "cuda" else None


def _mixed() -> tuple[tuple[torch.dtype, torch.dtype], ...]:
    return ((torch.float32, torch.bfloat16), (torch.float32, torch.float16))


@lru_cache(maxsize=1)
def _hardware() -> str | None:
    if torch.version.hip is not None:
        return "its kernels are written for NVIDIA GPUs, this torch is built for AMD's"
    if not torch.cuda.is_available():
        return "torch finds no NVIDIA GPU"
    weak = [k for k in range(torch.cuda.device_count()) if torch.cuda.get_device_capability(k) < (8, 0)]
    if weak:
        name = torch.cuda.get_device_name(weak[0])
        return f"its kernels need compute capability 8.0 (Ampere) or later on every visible GPU, {name} has less"
    return None


def refusal(x: Tensor, W: Tensor, U: Tensor, matrices: Sequence[Tensor], states: Sequence[Tensor]) -> str | None:
    """Why the kernels cannot take these tensors, or None if they can."""
    products = {v.dtype for v in (x, W, U, *matrices)}
    if len(products) > 1:
        return f"the Triton kernels multiply in one dtype; came {', '.join(sorted(str(d) for d in products))}"
    why = why_not(x.device.type, states[0].dtype, W.dtype)
    return None if why is None else f"the backend 'triton' cannot run this: {why}"


def rounds_to_tf32() -> bool:
    """Whether torch lets its own float32 products on a GPU be rounded to tf32."""
    # `allow_tf32` says the same, but raises where a user has set it by this, the newer name.
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


@contextmanager
def exact_products() -> Iterator[None]:
    """Torch's products of float32 numbers as such, whatever the setting for training."""
    if not rounds_to_tf32():
        yield
        return
    matmul = torch.backends.cuda.matmul
    try:
        by_old_name = matmul.allow_tf32
    except RuntimeError:  # set by the new one
        by_old_name = False
    matmul.allow_tf32 = False
    try:
        yield
    finally:
        if by_old_name:
            matmul.allow_tf32 = True
        else:
            matmul.fp32_precision = "tf32"


@contextmanager
def no_room(x: Tensor) -> Iterator[None]:
    """Says what to do where the device's memory is spent."""
    try:
        yield
    except torch.OutOfMemoryError as err:
        raise BackendError(
            f"{x.device} has no memory left for {x.shape[0]} steps of {x.shape[1]} sequences "
            f'({str(err).splitlines()[0]}); give fewer at once, or choose backend="cpu" with the model on the CPU'
        ) from None
