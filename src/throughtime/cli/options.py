"""The options of each command, as dataclasses that the command line and its help texts are made from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro

from throughtime.train.config import LMConfig

_FILE = tyro.conf.arg(metavar="FILE", help_behavior_hint="")
_RUN = tyro.conf.arg(metavar="RUN", help_behavior_hint="")


@dataclass(frozen=True)
class Train(LMConfig):
    """Train a language model on a text file.

    The run goes to a directory of its own with its options, its log and its checkpoints. Ctrl-C saves before
    it stops; `throughtime train --resume RUN` goes on from there to the same numbers.
    """

    text: Annotated[tyro.conf.Positional[str], _FILE] = ""
    """The text file to learn from. Not needed with --resume."""
    run: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: runs/FILE-CELL)")] = None
    """Directory of the new run; one that already holds something is refused."""
    resume: Annotated[Path | None, _RUN] = None
    """Continue this run. Its options stay, except for those given here; only --steps, --lr, --clip-norm,
    --valid-every, --valid-windows, --checkpoint-every, --threads and --device may change."""
    checkpoint: str = "last"
    """With --resume: the checkpoint to go on from, as last, best or step-000200. Later ones are dropped."""
    print_every: int = 50
    """Where the output is not a terminal: print a line every so many steps."""

    def __post_init__(self) -> None:
        """Check nothing yet: `config` does, once it is known whether a run is continued."""

    def config(self) -> LMConfig:
        """The options of the run; raises `ConfigError` when one makes no sense."""
        return LMConfig(**{field.name: getattr(self, field.name) for field in fields(LMConfig)})

    @classmethod
    def like(cls, config: LMConfig) -> Train:
        """Options that start from those of an earlier run."""
        return cls(**asdict(config))


@dataclass(frozen=True)
class Sample:
    """Let a trained model write text.

    Prints the prompt and what the model makes of it, as it is written.
    """

    run: Annotated[tyro.conf.Positional[Path], _RUN]
    """The directory of a run of `throughtime train`."""
    prompt: str = ""
    """The text to go on from."""
    length: int = 500
    """How many symbols to write."""
    temperature: float = 1.0
    """1 is what the model learned; less is safer, more is bolder, 0 takes the likeliest symbol each time."""
    seed: int = 0
    """The same seed gives the same text."""
    checkpoint: str = "best"
    """Which checkpoint: best (by validation), last, or a name such as step-000200."""


@dataclass(frozen=True)
class Demo:
    """Train a simple recurrent network and an LSTM on a text that every Python carries, in less than two minutes,
    see how far back the gradient reaches in each, and which of them can learn what the text asks for.

    Ends with a page to look at, and two runs to try `throughtime sample` on.
    """

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/demo")
    """Where everything goes; with -2, -3, ... behind it where that is taken."""
    steps: int = 800
    """Updates of each network."""
    seed: int = 0
    """Seed of everything random."""
