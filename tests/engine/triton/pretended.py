"""A GPU that is only pretended: tensors without numbers, of which torch follows sizes, dtypes and devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

GPU = torch.device("cuda:0")
ATEN, CONTIGUOUS = torch.ops.aten, torch.contiguous_format


class _WithoutDriver(TorchFunctionMode):
    """Some calls by the operations behind them: a torch without CUDA asks for its driver on the way there."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.__getitem__:
            return _picked(*args)
        if func is Tensor.__setitem__:
            v, where, value = args
            tensors = _tensors(v, where)
            if tensors:
                return ATEN.index_put_.default(v, tensors, torch.as_tensor(value, device=v.device))
            target = _picked(v, where)
            return ATEN.copy_.default(target, value) if isinstance(value, Tensor) else target.fill_(value)
        if func is Tensor.copy_:
            return ATEN.copy_.default(*args)
        if func is Tensor.contiguous:
            return args[0] if args[0].is_contiguous() else ATEN.clone.default(args[0], memory_format=CONTIGUOUS)
        return func(*args, **(kwargs or {}))


def _places(v: Tensor, where: Any) -> list[Any]:
    places = list(where) if isinstance(where, tuple) else [where]
    at = next((n for n, w in enumerate(places) if w is Ellipsis), None)
    if at is not None:
        rest = v.dim() - sum(w is not None for w in places) + 1
        places[at : at + 1] = [slice(None)] * rest
    return places


def _tensors(v: Tensor, where: Any) -> tuple[Tensor | None, ...]:
    """The indices that are tensors or lists, as `index_put_` takes them; all others must then be whole dimensions."""
    places = _places(v, where)
    if not any(isinstance(w, Tensor | list) for w in places):
        return ()
    assert all(isinstance(w, Tensor | list) or w == slice(None) for w in places)
    return tuple(None if isinstance(w, slice) else torch.as_tensor(w) for w in places)


def _picked(v: Tensor, where: Any) -> Tensor:
    tensors = _tensors(v, where)
    if tensors:
        return ATEN.index.Tensor(v, tensors)
    dim = 0
    for w in _places(v, where):
        if w is None:
            v = v.unsqueeze(dim)
        elif isinstance(w, slice):
            v = ATEN.slice.Tensor(v, dim, w.start, w.stop, 1 if w.step is None else w.step)
        else:
            v = v.select(dim, w)
            continue
        dim += 1
    return v


@contextmanager
def pretended() -> Iterator[None]:
    """Within it a tensor on `GPU` can be made. Tensors of two devices do not meet; a number that is read raises."""
    with FakeTensorMode(), _WithoutDriver():
        yield
