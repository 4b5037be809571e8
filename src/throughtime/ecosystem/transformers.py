"""`throughtime.transformers`: the watch, the guard and the clips as callbacks of the Hugging Face Trainer.

import throughtime as tt
from transformers import Trainer

Trainer(model, args, train_dataset=data, callbacks=[tt.transformers.Watch(budget=0.02), tt.transformers.Guard()])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from throughtime.ecosystem.extras import needed, on_their_base
from throughtime.ecosystem.transformers_hooks import ClipHooks, GuardHooks, WatchHooks

if TYPE_CHECKING:

    class Clip(ClipHooks): ...

    class Guard(GuardHooks): ...

    class Watch(WatchHooks): ...


def _callback() -> tuple[type, ...]:
    return (needed("transformers", "transformers", "a callback of the Hugging Face Trainer").TrainerCallback,)


__getattr__ = on_their_base(__name__, {"Clip": ClipHooks, "Guard": GuardHooks, "Watch": WatchHooks}, _callback)
__all__ = ["Clip", "Guard", "Watch"]
