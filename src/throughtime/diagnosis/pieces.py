"""One long series cut into pieces that lie apart, so that they can be exchanged as sequences are."""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.diagnosis.chance import BLOCKS
from throughtime.diagnosis.sequences import Sequences

PIECES = 64  # as many as are cut where the series is long enough
TARGETS = 256  # steps of a piece whose targets are looked at, at most
LEAST = 32  # and at least


def pieces(x: Tensor, y: Tensor, far: int) -> Sequences | None:
    """Pieces of far + 32 to far + 256 steps, spread evenly over a series of symbols [n] or of real numbers [n, D].

    The targets of a piece that are looked at are those from its step `far` on, so that between the targets of one piece
    and those of the next there are at least `far` steps whose targets are left out. No input that one target is held
    against is in two pieces: exchanging what lies far back among whole pieces (block permutation, Carlstein 1986)
    keeps what neighbouring steps have in common and takes away nothing but what the far inputs tell of the targets.

    None where that gives fewer than 20 pieces.
    """
    n = min(PIECES, len(x) // (far + LEAST))
    if n < BLOCKS:
        return None
    length = min(len(x) // n, far + TARGETS)
    at = (torch.arange(n) * (len(x) - length) // (n - 1))[:, None] + torch.arange(length)
    return Sequences(x[at], y[at], "each")
