"""`throughtime.lightning`: the watch, the guard and the clips as callbacks of Lightning.

    import throughtime as tt
    from lightning import Trainer

    Trainer(callbacks=[tt.lightning.Watch(budget=0.02), tt.lightning.Guard()])

They are callbacks of `lightning` (2.6.6 or later) and of `pytorch_lightning`, of whichever is imported.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from throughtime.ecosystem.extras import needed, on_their_base
from throughtime.ecosystem.lightning_hooks import ClipHooks, GuardHooks, WatchHooks

if TYPE_CHECKING:

    class Clip(ClipHooks): ...

    class Guard(GuardHooks): ...

    class Watch(WatchHooks): ...


def _callbacks() -> tuple[type, ...]:
    """Their class of callbacks: of each of the two packages that is imported, for neither takes the other's."""
    imported = [name for name in ("lightning.pytorch", "pytorch_lightning") if name in sys.modules]
    if not imported:
        old_name_only = find_spec("lightning") is None and find_spec("pytorch_lightning") is not None
        imported = ["pytorch_lightning" if old_name_only else "lightning.pytorch"]
    return tuple(needed(name, "lightning", "a callback of Lightning").Callback for name in imported)


__getattr__ = on_their_base(__name__, {"Clip": ClipHooks, "Guard": GuardHooks, "Watch": WatchHooks}, _callbacks)
__all__ = ["Clip", "Guard", "Watch"]
