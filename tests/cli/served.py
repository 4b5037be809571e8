"""Runs command lines of throughtime, each in a process forked off this one, so that torch is imported once for all.

Each line of stdin is one: words, a folder to be in, and the files that stdout and stderr go to, as JSON. Its exit
status is printed. The command itself runs at the top level of the forked process, so that it ends as it would alone.
"""

import json
import os
import sys

import throughtime.cli
import throughtime.diagnosis.script


def serve() -> list[str]:
    """The words to run, in a new process; the process that forks never comes back."""
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            os.chdir(asked["cwd"])
            for number, path in ((0, os.devnull), (1, asked["out"]), (2, asked["err"])):
                os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), number)
            sys.stdin = open(0, closefd=False)  # noqa: SIM115
            return asked["words"]
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    os._exit(0)


sys.exit(throughtime.cli.main(serve()))
