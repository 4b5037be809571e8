"""From the words of a command line to a command, and from its errors to one line and an exit status."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Annotated, Any, Union

import tyro

from throughtime import __version__
from throughtime.cli.options import (
    Demo,
    Diagnose,
    Drift,
    Evaluate,
    Export,
    Forecast,
    Lab,
    Prescribe,
    Report,
    Sample,
    Serve,
    Watch,
)
from throughtime.cli.train_options import KINDS, Train, kind_in
from throughtime.errors import NonFiniteError, ProcessError, ThroughtimeError
from throughtime.files import WriteError
from throughtime.train.launched import is_first, left_to_first

_DESCRIPTION = """Train recurrent networks, and see how far back in time their gradients reach.

`throughtime COMMAND --help` explains a command; `throughtime --version` prints the version."""

COMMANDS = {
    "train": (Train, "train"),
    "sample": (Sample, "sample"),
    "forecast": (Forecast, "use"),
    "evaluate": (Evaluate, "use"),
    "export": (Export, "export"),
    "drift": (Drift, "drift"),
    "demo": (Demo, "demo"),
    "diagnose": (Diagnose, "diagnose"),
    "prescribe": (Prescribe, "prescribe"),
    "report": (Report, "report"),
    "watch": (Watch, "watch"),
    "serve": (Serve, "serve"),
    "lab": (Lab, "serve"),
}
"""By the word that calls it: its options, and the module of `throughtime.cli` whose `main(options, words)` runs it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0: done. 1: the run failed (a NaN, a full disk). 2: the options or files given cannot be used.
    130, 143: stopped by Ctrl-C or SIGTERM. An error is one line on stderr.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words in (["--version"], ["-V"]):
        print(f"throughtime {__version__}")
        return 0
    if words[:1] == ["watch"]:  # how somebody's script ends is its own affair
        from throughtime.cli import watch

        return watch.main(words[1:])
    try:
        with nullcontext() if is_first() else _silence():
            options = parse(words)
        status = _run(options, words)
        sys.stdout.flush()
        return status
    except ThroughtimeError as error:
        if not left_to_first(error):
            _complain(f"error: {error}")
        return 1 if isinstance(error, NonFiniteError | WriteError | ProcessError) else 2
    except KeyboardInterrupt as stop:  # TrainingStopped, or a second Ctrl-C that did not wait
        if is_first():
            _complain(str(stop) or "stopped")
        received = getattr(stop, "received", None)
        return 128 + int(received) if received is not None else 130
    except BrokenPipeError:  # the reader (head, less) has seen enough
        _drop_output()
        return 0
    except OSError as error:  # the output itself cannot be written: a full disk, a lost terminal
        _complain(f"error: {error}")
        _drop_output()
        return 1


def parse(words: Sequence[str], train: Any = None) -> Any:
    """The options in `words`; those of `train` that are not there are taken from `train`.

    For words that make no sense, tyro explains them and exits with status 2.
    """
    kind = kind_in(words)
    if kind or (train is not None and words[:1] == ["train"]):
        options = type(train) if train is not None else KINDS[str(kind)]
        rest = words[2:] if kind else words[1:]
        return tyro.cli(options, prog=f"throughtime train {kind or ''}".strip(), default=train or options(), args=rest)
    given: dict[str, Any] = {"train": {"default": Train()}}
    choices = [
        Annotated[options, tyro.conf.subcommand(name, **given.get(name, {}))] for name, (options, _) in COMMANDS.items()
    ]
    commands: Any = Union[tuple(choices)]  # noqa: UP007  (made at run time)
    return tyro.cli(commands, prog="throughtime", description=_DESCRIPTION, args=words)


def _run(options: Any, words: Sequence[str]) -> int:
    """Each command is imported when it is wanted, so that help does not wait for torch."""
    module = next((module for kind, module in COMMANDS.values() if type(options) is kind), "train")
    return importlib.import_module(f"throughtime.cli.{module}").main(options, words) or 0


def _drop_output() -> None:
    """Send what is still in the buffer nowhere, or Python tries again, and complains, when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _silence() -> Iterator[None]:
    """Of several processes with the same words one explains them."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        yield


def _complain(message: str) -> None:
    print("throughtime: " + " ".join(message.split()), file=sys.stderr)
