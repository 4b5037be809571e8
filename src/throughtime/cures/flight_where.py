"""From an index in a tensor to a time step and a sample of the batch."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from throughtime.flow.capture_calls import LayerCall

Index = tuple[int, ...]


class Spot(NamedTuple):
    """A time step and a sample, as far as they are known."""

    t: int | None = None
    sample: int | None = None


def sample_of(call: LayerCall, b: int | None) -> int | None:
    """The number of a sample as the user gave it; inside a packed batch they are sorted by length."""
    packed = call.layout.packed
    if b is None or packed is None or packed.sorted_indices is None:
        return b
    return int(packed.sorted_indices[b])


def in_layer(call: LayerCall, index: int, bad: Tensor) -> Spot:
    """Where something bad stands in what a layer returned: its output (index 0) or a last state.

    bad: bool, in the shape of the tensor. Of several steps it is the one that a backward pass meets first.
    """
    if call.is_cell:
        rows = bad.reshape(-1, bad.shape[-1]).any(-1)
        return Spot(None, _single(rows))
    if index:
        rows = call.state_order(bad).any(0).any(-1)
        last = call.x.shape[0] - 1 if call.layout.lengths is None else None
        return Spot(last, sample_of(call, _single(rows)))
    both = call.output_order(bad.double()).bool().any(-1)
    steps = both.any(1).nonzero().flatten()
    t = int(steps[-1])
    return Spot(t, sample_of(call, _single(both[t])))


def first_in_layer(call: LayerCall, bad: Tensor) -> Spot:
    """The first step at which the output of a layer is bad."""
    both = call.output_order(bad.double()).bool().any(-1)
    t = int(both.any(1).nonzero()[0])
    return Spot(t, sample_of(call, _single(both[t])))


def in_step(bad: Tensor) -> int | None:
    """The sample in a tensor of one step, [B, .]."""
    return _single(bad.reshape(bad.shape[0], -1).any(-1)) if bad.dim() > 1 else None


class Extent(NamedTuple):
    """The steps T and the sequences B of a recurrence."""

    T: int
    B: int


def by_shape(bad: Tensor, extent: Extent | None) -> Spot:
    """Where something bad stands in a tensor that is no layer's, by its shape beside that of a recurrence.

    It must be [T, B, ..] or [B, T, ..] with T and B that differ; of [B, ..] the sample alone is known.
    """
    if extent is None or bad.dim() == 0:
        return Spot(None, None)
    T, B = extent
    for turned, shape in ((False, (T, B)), (True, (B, T))):
        if T != B and tuple(bad.shape[:2]) == shape:
            both = bad.reshape(*shape, -1).any(-1)
            both = both.T if turned else both
            t = int(both.any(1).nonzero()[0])
            return Spot(t, _single(both[t]))
    return Spot(None, _single(bad.reshape(B, -1).any(-1)) if T != B == bad.shape[0] else None)


def bad_of(v: Tensor) -> Tensor:
    """Where a tensor holds NaN or infinity."""
    return ~v.detach().isfinite()


def first_value(v: Tensor) -> float:
    """The first number that is NaN or infinite."""
    return float(v.detach()[bad_of(v)].reshape(-1)[0])


def first_index(v: Tensor) -> Index:
    """Where it stands."""
    return tuple(int(i) for i in bad_of(v).nonzero()[0])


def _single(rows: Tensor) -> int | None:
    found = rows.nonzero().flatten().tolist()
    return int(found[0]) if found and (len(found) == 1 or len(found) < rows.shape[0]) else None


def largest_finite(v: Tensor) -> float:
    """The largest absolute value among the finite ones; 0 where there is none."""
    good = v.detach()[v.detach().isfinite()]
    return float(good.abs().amax()) if good.numel() else 0.0
