"""Runs somebody's training script as Python itself would, and watches whatever model it trains."""

from __future__ import annotations

import gc
import importlib.machinery
import importlib.util
import io
import os
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from torch import nn

from throughtime.diagnosis.budget import Clock
from throughtime.diagnosis.several import Together, together
from throughtime.diagnosis.watcher import Watch
from throughtime.errors import ConfigError, FlowError
from throughtime.flow.capture import check_model

_ours: list[ModuleType] = []  # the __main__ that was there before, kept alive: it may be at work still


class ScriptWatch(Watch):
    """Watches a training whose model is not known before it trains: it is looked for after the first backward pass, and
    again after backward passes that reach none of the models known.

    The models are those modules that belong to no other module and have parameters with a gradient. Those that the
    script has let go of are let go of here too, once there are others.
    """

    def __init__(self, budget: float, path: str | os.PathLike[str] | None, clock: Clock | None = None):
        super().__init__(budget, path, clock)
        self._others = 0  # backward passes that reached nothing known
        self._look_at = 1  # at how many of them to look for models again
        self._known: list[weakref.ref[nn.Module]] = []

    def _other_backward(self) -> None:
        self._others += 1
        if self._others < self._look_at:
            return
        self._look_at *= 2  # to look through all objects takes a while
        self._settle(at_the_end=True)
        self._model = None  # what the script holds no more is gone with that
        self._reach.look_at(())
        trained = trained_models()
        had = [m for r in self._known if (m := r()) is not None]
        new = [m for m in trained if all(m is not h for h in had) and self._can_be_seen(m)]
        self._known = [weakref.ref(m) for m in (*had, *new)]
        self.steps += bool(new)
        self.look_at(together([*had, *new]) if had or new else None)

    def _can_be_seen(self, model: nn.Module) -> bool:
        try:
            check_model(model)
        except FlowError as error:
            self.note(str(error))
            return False
        return True


def trained_models() -> list[nn.Module]:
    """The modules alive that have parameters with a gradient and are part of no other module, the oldest first."""
    alive = [o for o in gc.get_objects() if issubclass(type(o), nn.Module) and "_modules" in o.__dict__]
    alive = [m for m in alive if not isinstance(m, Together)]
    inside = {id(child) for m in alive for child in m.__dict__["_modules"].values() if child is not None}
    roots = [m for m in alive if id(m) not in inside]
    return [m for m in roots if any(p.grad is not None for p in m.parameters())]


class Script:
    """A script file, or a module as `python -m` takes it, ready to be run as __main__.

    Raises ConfigError where there is no such file or module, before anything is changed. What Python itself would
    say of the script, a SyntaxError say, is raised by `run`.
    """

    def __init__(self, name: str, arguments: Sequence[str] = (), *, as_module: bool = False):
        self.name, self.arguments, self.as_module = name, list(arguments), as_module
        self.started = False  # whether Python has begun with what is the script's own
        self.namespace: dict[str, Any] | None = None  # of its __main__
        self.stem = name.rpartition(".")[2] if as_module else Path(os.path.abspath(name)).stem
        if as_module:
            return
        path = Path(name)
        if path.is_dir():
            path = path / "__main__.py"
        if not path.is_file():
            raise ConfigError(f"there is no script {path}; give a Python file, or -m and the name of a module")
        self.path = path

    def run(self) -> None:
        """Runs it: as __main__, with its own sys.argv and sys.path[0]. Its exceptions pass through, SystemExit too.

        All of that stays in place afterwards, for what still runs at exit.
        """
        if self.as_module:
            self._run_module()
        else:
            self._run_file()

    def _run_file(self) -> None:
        directory = Path(self.name).is_dir()
        sys.argv[:] = [self.name, *self.arguments]
        # Python puts the folder of the script itself there, and not that of a link to it.
        _first_on_path(os.path.abspath(self.name) if directory else os.path.dirname(os.path.realpath(self.path)))
        path = os.path.abspath(self.path)
        main = ModuleType("__main__")
        main.__file__ = path
        main.__loader__ = importlib.machinery.SourceFileLoader("__main__", path)
        if directory:
            main.__spec__, main.__package__ = importlib.util.spec_from_file_location("__main__", path), ""
        main.__dict__["__cached__"] = None
        with io.open_code(path) as file:
            source = file.read()
        self.started = True
        self._execute(compile(source, path, "exec", dont_inherit=True), main)

    def _run_module(self) -> None:
        sys.argv[:] = ["-m", *self.arguments]
        _first_on_path(os.getcwd())
        spec = _spec(self.name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = _spec(f"{self.name}.__main__")
        loader = None if spec is None else spec.loader
        code = loader.get_code(spec.name) if spec is not None and hasattr(loader, "get_code") else None  # type: ignore
        if spec is None or code is None:
            raise ConfigError(f"there is no module {self.name} that could be run; python -m would say the same")
        main = ModuleType("__main__")
        main.__spec__, main.__loader__, main.__package__ = spec, loader, spec.parent
        if spec.has_location and spec.origin is not None:
            main.__file__ = sys.argv[0] = spec.origin
            main.__dict__["__cached__"] = spec.cached
        else:
            sys.argv[0] = self.name
        self._execute(code, main)

    def _execute(self, code: CodeType, main: ModuleType) -> None:
        self.started, self.namespace = True, main.__dict__
        names = {"__builtins__": sys.modules["builtins"]}
        main.__dict__.update(names if sys.version_info >= (3, 14) else {**names, "__annotations__": {}})
        before = sys.modules["__main__"]
        _ours.append(before)
        # multiprocessing calls it __mp_main__ too, from its import on.
        for name in [n for n in ("__main__", "__mp_main__") if sys.modules.get(n) is before]:
            sys.modules[name] = main
        exec(code, main.__dict__)


def _spec(name: str) -> importlib.machinery.ModuleSpec | None:
    """Where a module is; its parents are imported on the way, and their own errors pass through."""
    parent = name.rpartition(".")[0]
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        # That there is no such parent is for us to say; that something it imports is missing is not.
        if error.name is not None and (parent == error.name or parent.startswith(error.name + ".")):
            return None
        raise
    except ValueError:
        return None


def _first_on_path(place: str) -> None:
    if sys.flags.safe_path:  # Python was asked to put nothing there
        return
    if sys.path:
        sys.path[0] = place
    else:
        sys.path.append(place)
