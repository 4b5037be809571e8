"""`throughtime watch`: runs a training script as it is, and leaves a diagnosis of the models that it trained."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

import tyro

from throughtime.cli.options import Watch
from throughtime.errors import ThroughtimeError
from throughtime.files import WriteError, write_file, writing

if TYPE_CHECKING:
    from throughtime.diagnosis.script import Script, ScriptWatch

_WITH_VALUE = ("--budget", "--out")


def main(words: Sequence[str]) -> int:
    """Runs the script in `words`; returns 0 when it has come to its end.

    Its own exceptions and its SystemExit pass through, so that the exit status is the script's. 2: our own options
    or the script's name make no sense.
    """
    options = parse(words)
    from throughtime.diagnosis.script import Script, ScriptWatch

    try:
        script = Script(options.script, options.arguments, as_module=options.module)
        out = (options.out or _free(Path("runs") / f"watch-{script.stem}")).absolute()  # the script may change folders
        if options.out is not None and out.exists() and any(out.iterdir() if out.is_dir() else [out]):
            raise WriteError(f"{options.out} already holds something and is left as it is; choose another with --out")
        watch = ScriptWatch(options.budget, out / "history.jsonl")
    except ThroughtimeError as error:
        print(f"throughtime watch: error: {error}", file=sys.stderr)
        return 2
    told, process = sys.stderr, os.getpid()
    if os.environ.get("RANK", "0") == "0":  # torchrun's other processes train the same model
        watch.begin()
    failed = True
    try:
        script.run()
        failed = False
    except SystemExit:
        failed = False
        raise
    except BaseException as error:
        if isinstance(error, ThroughtimeError) and not script.started:
            print(f"throughtime watch: error: {error}", file=sys.stderr)
            return 2
        _hide_our_frames(error, script)
        raise
    finally:
        if os.getpid() == process:  # a process that the script forked off ends here too, and has nothing to tell
            if not failed:
                _wait_for_threads()
            if script.started:
                _finish(watch, out, told)
            else:
                watch.end()
    return 0


def parse(words: Sequence[str]) -> Watch:
    """The options in `words`: ours up to the name of the script, all that follows is the script's own.

    For words that make no sense, tyro explains them and exits with status 2.
    """
    n = 0
    while n < len(words) and words[n].startswith("-"):
        n += 2 if words[n] in _WITH_VALUE else 1
    ours, rest = list(words[:n]), list(words[n:])
    options = tyro.cli(Watch, prog="throughtime watch", args=[*ours, *rest[:1]])
    return replace(options, arguments=tuple(rest[1:]))


def _finish(watch: ScriptWatch, out: Path, told: TextIO) -> None:
    """Prints what was seen, and saves it. No error here may hide how the script ended."""
    try:
        watch.end()
        print(f"\nthroughtime: {_told(watch, out)}", file=told, flush=True)
    except Exception as error:
        with suppress(Exception):
            print(f"throughtime: what was seen cannot be told ({type(error).__name__}: {error})", file=told)


def _told(watch: ScriptWatch, out: Path) -> str:
    if not watch.steps:
        why = watch.notes or ["no model was trained in this process: none got a gradient from backward()"]
        return "nothing to diagnose: " + "; ".join(why)
    if not watch.history:
        return str(watch)
    try:
        diagnosis = watch.diagnosis()
        with writing(out):
            diagnosis.save(out / "diagnosis.safetensors")
        text = str(diagnosis)
    except ThroughtimeError as error:
        text = f"no diagnosis: {error}"
    write_file(out / "diagnosis.txt", f"{watch}\n\n{text}\n".encode())
    return f"{watch}\n\n{text}\n\nthroughtime: saved in {out}: {', '.join(sorted(p.name for p in out.iterdir()))}"


def _wait_for_threads() -> None:
    """A script is not over before its threads are, as in Python itself."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()


def _hide_our_frames(error: BaseException, script: Script) -> None:
    """The traceback that Python prints at the end begins in the script, as it would without us."""
    begin: TracebackType | None = error.__traceback__
    while begin is not None and begin.tb_frame.f_globals is not script.namespace:
        begin = begin.tb_next
    print_it = sys.excepthook  # the script's own, if it has one

    def hook(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        if value is error:
            value, trace = value.with_traceback(begin), begin
        print_it(kind, value, trace)

    sys.excepthook = hook


def _free(first: Path) -> Path:
    """A directory that does not exist yet: with -2, -3, ... behind its name where that is taken."""
    path, number = first, 1
    while os.path.lexists(path):
        number += 1
        path = first.with_name(f"{first.name}-{number}")
    return path
