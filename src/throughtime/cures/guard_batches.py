"""A loader that can be stepped back: the batches since the last snapshot are kept and given once more."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any


class Batches:
    """Any iterable of batches, with a position that the guard can go back to.

        for batch in guard.batches(loader): ...

    It holds on to the batches from the oldest position that may still be gone back to; they are given out as they
    were, so nothing may change them in place. Their number is that of the guard's cadence, a few times over.
    Positions are counted over all epochs. What a loader draws inside its workers is not drawn again.
    """

    def __init__(self, loader: Iterable[Any]):
        self.loader = loader
        self.position = 0  # the number of the batch that comes next
        self._in_hand = 0  # how many were given out for a step that is not done yet
        self._kept: deque[Any] = deque()
        self._first = 0  # the number of the oldest batch kept

    def __iter__(self) -> Iterator[Any]:
        source = iter(self.loader)
        start = self._first + len(self._kept)
        # What an earlier epoch left is not given again, and cannot be gone back to.
        self.position, self._first = start, start
        self._kept.clear()
        while True:
            while self.position < self._first + len(self._kept):
                self.position += 1
                self._in_hand += 1
                yield self._kept[self.position - 1 - self._first]
            try:
                batch = next(source)
            except StopIteration:
                return
            self._kept.append(batch)

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, int]:
        """The position of the first batch in hand, or else of the next one; for a snapshot."""
        return {"position": max(self.position - self._in_hand, self._first)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes back, so that this batch comes next; to the oldest one that is kept, where that lies later."""
        self.position = min(max(state["position"], self._first), self._first + len(self._kept))
        self._in_hand = 0

    def used(self) -> None:
        """A step is done with the batches in hand."""
        self._in_hand = 0

    def forget(self, before: int) -> None:
        """Lets go of the batches before a position."""
        while self._kept and self._first < before:
            self._kept.popleft()
            self._first += 1
