"""Memory for the kernels to write to."""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.engine.cpu import library


def fresh(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory to be written; of many megabytes in large pages, which cost less to touch for the first time."""
    out = torch.empty(shape, dtype=dtype)
    if out.numel() > 1 << 20:
        library.load().tt_large_pages(out.data_ptr(), out.nbytes)
    return out
