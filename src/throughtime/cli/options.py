"""The options of each command, as dataclasses that the command line and its help texts are made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

_FILE = tyro.conf.arg(metavar="FILE", help_behavior_hint="")
_ARGS = tyro.conf.arg(metavar="ARGS", help_behavior_hint="")
_RUN = tyro.conf.arg(metavar="RUN", help_behavior_hint="")


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
    top_k: int = 0
    """Draw from so many likeliest symbols only; 0 draws from all."""
    top_p: float = 1.0
    """Draw from the fewest symbols only that together have this probability."""
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


@dataclass(frozen=True)
class Watch:
    """Run a training script as it is, and see the gradient through time of the models that it trains.

    Our options stand before the script's name; all behind it is the script's own. Now and then one of its training
    steps is captured and measured, within a budget of time; the script computes the same numbers. At its end, however
    it ends, a diagnosis is printed to stderr and saved beside the history. The exit status is the script's.
    """

    script: Annotated[tyro.conf.Positional[str], _FILE]
    """The Python script, or with -m the name of a module."""
    arguments: Annotated[tyro.conf.Positional[tuple[str, ...]], _ARGS] = ()
    """What the script is given."""
    module: Annotated[bool, tyro.conf.arg(aliases=["-m"]), tyro.conf.FlagCreatePairsOff] = False
    """Run a module, as python -m does."""
    budget: float = 0.02
    """The share of training time that watching may take: 0.02 is 2 %. 0 measures once, inf every step."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: runs/watch-SCRIPT)")] = None
    """Directory for the diagnosis and the history; one that already holds something is refused."""


@dataclass(frozen=True)
class Report:
    """Make a page of a trained run, or of a saved diagnosis: one file that opens offline.

    The verdict, the horizons, the gradient of every loss at every step of its past, the gates, the findings with what
    to do; for a run on text the text itself, in which one can point at a character and see where its loss sends
    gradient.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN|FILE", help_behavior_hint="")]
    """The directory of a run of `throughtime train`, or a saved diagnosis."""
    checkpoint: str = "best"
    """Which checkpoint: best (by validation), last, or a name such as step-000200."""
    text: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: where it was)")] = None
    """Where the text, or whatever file the run learned from, is now, if it was moved."""
    use: bool = True
    """Measure also how far back the model looks, by replacing what is older."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: beside it)")] = None
    """Where the page goes."""


@dataclass(frozen=True)
class Serve:
    """Look at training runs as they go, in a browser: losses, gradient norms, horizons, the current map, alarms.

    Follows every run of `throughtime train` and every history of a watched training in a folder. Answers to the
    browser of this machine only; Ctrl-C stops it, and the runs go on. The lab is on the same server.
    """

    runs: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUNS", help_behavior_hint="")] = Path("runs")
    """The folder that holds the runs, or one run."""
    port: int = 7878
    """Where to listen, on 127.0.0.1; 0 takes any that is free."""
    browser: bool = True
    """Open the page in the browser."""


@dataclass(frozen=True)
class Lab:
    """The textbook that one can touch: pick a cell, move a slider, see the gradient flow back through time.

    Answers to the browser of this machine only; Ctrl-C stops it.
    """

    port: int = 7879
    """Where to listen, on 127.0.0.1; 0 takes any that is free."""
    browser: bool = True
    """Open the page in the browser."""


@dataclass(frozen=True)
class Diagnose:
    """Tell what is wrong with a trained run, or that nothing is, and what to do.

    Follows the gradient through time of its model, measures how far back its data ask for memory and how far back the
    model looks, and audits weights, gates, steps and clipping. The verdict comes first, then the findings by
    importance. The result is saved in the run's directory.
    """

    run: Annotated[tyro.conf.Positional[Path], _RUN]
    """The directory of a run of `throughtime train`."""
    checkpoint: str = "best"
    """Which checkpoint: best (by validation), last, or a name such as step-000200."""
    text: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: where it was)")] = None
    """Where the text, or whatever file the run learned from, is now, if it was moved."""
    batches: int = 6
    """Windows or batches of the data to follow the gradient through; 5 or more give its horizon an interval."""
    use: bool = True
    """Measure also how far back the model looks, by replacing what is older."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: in the run)")] = None
    """Where the result is saved."""


@dataclass(frozen=True)
class Prescribe:
    """Try the remedies that fit a model's diagnosis on copies of it, and say which change helps, if any.

    For the directory of a run, or for a model of your own: a Python file with a function `setup` that returns
    (model, batches, loss, optimiser), as throughtime.prescribe takes them. Each remedy is trained from the same start
    on the same batches, side by side with doing nothing; the table shows before and after, and the change as code.
    """

    what: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN|FILE[:FUNCTION]", help_behavior_hint="")]
    """The directory of a run of `throughtime train`, or a Python file."""
    steps: int = 200
    """Steps of each trial."""
    seeds: int = 5
    """Trials of each remedy, 3 or more; they differ in the order of the batches and all that is drawn."""
    clip: float | None = None
    """The norm that your own training clips to, if it does."""
    checkpoint: str | None = None
    """Of a run: begin at best, last, or a name such as step-000200; else with new weights."""
    text: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: where it was)")] = None
    """Of a run: where the text is now, if it was moved."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: not saved)")] = None
    """Where the result is saved."""


@dataclass(frozen=True)
class Evaluate:
    """Tell how good a trained run is on data that it did not learn from.

    The mean loss and what else fits: bits per symbol and perplexity of a text, accuracy of labels, CRPS and errors of a
    forecast, the part of a task's sequences that is right; and what simple rivals reach on the same data.
    """

    run: Annotated[tyro.conf.Positional[Path], _RUN]
    """The directory of a run of `throughtime train`."""
    part: str = ""
    """valid or test; without it the test part where the run kept one, else the validation part."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: the run's own)")] = None
    """Another file of the same kind, all of it."""
    checkpoint: str = "best"
    """Which checkpoint: best (by validation), last, or a name such as step-000200."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class Forecast:
    """Forecast the steps behind the last row of a table, as a CSV table: mean and quantiles of each step ahead."""

    run: Annotated[tyro.conf.Positional[Path], _RUN]
    """The directory of a run of `throughtime train forecast`."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: the run's own)")] = None
    """Another table with the same columns."""
    quantiles: tuple[float, ...] = (0.1, 0.5, 0.9)
    """Probabilities between 0 and 1."""
    checkpoint: str = "best"
    """Which checkpoint: best (by validation), last, or a name such as step-000200."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: printed)")] = None
    """Where the table is written, whole or not at all."""


@dataclass(frozen=True)
class Export:
    """Write a trained model to a file that other programs run: ONNX, or a program of torch.export.

    The states go in and come out, so that it can be fed step by step; steps and batch may be any. What the numbers mean
    (vocabulary, normalisation, labels) is in the file. It is written only if it computes what the model computes.
    """

    run: Annotated[tyro.conf.Positional[Path], _RUN]
    """The directory of a run of `throughtime train`."""
    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE.onnx|FILE.pt2", help_behavior_hint="")]
    """Where it goes; the ending says what is written."""
    checkpoint: str = "best"
    """Which checkpoint: best (by validation), last, or a name such as step-000200."""


@dataclass(frozen=True)
class Drift:
    """Measure how a trained model drifts when it feeds on its own output.

    Held-out data are read on as they are (open loop), and once such that each next step is what the model drew itself
    (closed loop); the two are compared as a function of the steps since. For runs on text and notes, and for series
    that are forecast from themselves alone. The result is saved as JSON.
    """

    run: Annotated[tyro.conf.Positional[Path], _RUN]
    """The directory of a run of `throughtime train`."""
    length: int = 256
    """Steps after the loop is closed."""
    context: int = 64
    """Real steps before it."""
    sequences: int = 64
    """Stretches of the held-out data, at most."""
    seed: int = 0
    """Of all that is drawn."""
    part: str = ""
    """valid or test; without it the test part where the run kept one, else the validation part."""
    checkpoint: str = "best"
    """Which checkpoint: best (by validation), last, or a name such as step-000200."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: RUN/drift.json)")] = None
    """Where the result is saved."""
