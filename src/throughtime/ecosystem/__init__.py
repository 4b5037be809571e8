"""At home in other people's trainers: the watch, the guard and the clips as callbacks, our own runs in trackers.

lightning      Watch, Guard and Clip as callbacks of Lightning
transformers   the same as callbacks of the Hugging Face Trainer
tracking       a run's own records told to TensorBoard, trackio and W&B

Nothing here is imported before it is asked for: each needs a package that throughtime does without.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULES = ("lightning", "tracking", "transformers")


def __getattr__(name: str) -> Any:
    """Imports a module when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])


__all__ = ["lightning", "tracking", "transformers"]
