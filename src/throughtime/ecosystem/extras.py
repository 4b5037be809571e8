"""Packages that throughtime does without until they are asked for, and classes that stand on theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from throughtime.errors import ConfigError


def needed(package: str, extra: str, what: str) -> Any:
    """The module `package`; raises ConfigError that says how to install it.

    extra: the name of our optional extra that brings it.   what: what it is needed for, as a sentence begins.
    """
    try:
        return import_module(package)
    except ImportError as error:
        missing = (error.name or "").split(".")[0]
        if missing and missing != package.split(".")[0]:
            raise ConfigError(f"{what} needs {package}, which cannot be imported here: {error}") from None
        raise ConfigError(
            f"{what} needs {package.split('.')[0]}, which is not installed: pip install throughtime[{extra}]"
        ) from None


def on_their_base(module: str, parts: Mapping[str, type], bases: Callable[[], tuple[type, ...]]) -> Any:
    """A `__getattr__` for a module: its classes are made, out of ours and theirs, when they are first asked for.

    parts: our half of each class, by the name of the whole.   bases: gives their half, and imports it.
    """
    made: dict[tuple[str, tuple[type, ...]], type] = {}

    def __getattr__(name: str) -> Any:
        if name not in parts:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        theirs = bases()
        if (name, theirs) not in made:
            about = {"__module__": module, "__doc__": parts[name].__doc__}
            made[name, theirs] = type(name, (parts[name], *theirs), about)
        return made[name, theirs]

    return __getattr__
