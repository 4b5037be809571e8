"""`throughtime prescribe`: tries the remedies that fit a run or a model of one's own; shows before and after."""

from __future__ import annotations

import importlib.util
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from throughtime.cli.options import Prescribe
from throughtime.cures.prescribe import prescribe
from throughtime.cures.prescribe_result import Prescription
from throughtime.errors import ConfigError
from throughtime.train.prescribing import prescribe_run


def main(options: Prescribe, words: Sequence[str] = ()) -> int:
    """Prints the table and the change; saves the result with --out."""
    found = _of_run(options) if os.path.isdir(options.what) else _of_file(options)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    print(found)
    if options.out is not None:
        found.save(options.out)
        print(f"\nsaved to {options.out}; read it again with throughtime.Prescription.load")
    return 0


def _of_run(options: Prescribe) -> Prescription:
    if options.clip is not None:
        raise ConfigError("a run clips as it was trained; --clip is for a model of your own")
    return prescribe_run(
        options.what, checkpoint=options.checkpoint, text=options.text, steps=options.steps, seeds=options.seeds
    )


def _of_file(options: Prescribe) -> Prescription:
    if options.checkpoint is not None or options.text is not None:
        raise ConfigError("--checkpoint and --text are for the directory of a run; a file makes its model itself")
    made = _function(options.what)()
    if not isinstance(made, tuple) or len(made) != 4:
        came = f"a tuple of {len(made)}" if isinstance(made, tuple) else type(made).__name__
        raise ConfigError(f"the function must return (model, batches, loss, optimiser); came {came}")
    return prescribe(*made, clip=options.clip, steps=options.steps, seeds=options.seeds)


def _function(what: str) -> Callable[[], Any]:
    """The function named by FILE.py or FILE.py:FUNCTION. What the file itself raises passes through."""
    name, colon, function = what.rpartition(":")
    if not colon or function.endswith(".py") or "/" in function or os.sep in function:
        name, function = what, "setup"
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"there is no file and no run directory {name}; give RUN, FILE.py or FILE.py:FUNCTION")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{name} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    # As Python does for a script: what lies beside it can be imported, by the processes of the trials as well.
    sys.path.insert(0, str(path.parent.absolute()))
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    found = getattr(module, function, None)
    if not callable(found):
        raise ConfigError(
            f"{name} has no function {function}; write one that returns (model, batches, loss, optimiser), and name it "
            f"setup or give {name}:NAME"
        )
    return found
