"""The diagnosis of a trained run: its model on its own text, its optimiser, its history of gradient norms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from throughtime.diagnosis import Diagnosis, dependence, diagnose
from throughtime.diagnosis.asked import Asked
from throughtime.errors import ConfigError
from throughtime.train import checkpoint as checkpoints
from throughtime.train.data import Streams, TextData
from throughtime.train.model import SequenceModel
from throughtime.train.runlog import read_log
from throughtime.train.session import Session, private_torch
from throughtime.train.textrun import open_text_run

MOST = 500_000  # symbols that the data horizon is measured on
SHUFFLES = 10


def diagnose_run(
    run_dir: str | Path, *, checkpoint: str = "best", text: str | Path | None = None, batches: int = 6, use: bool = True
) -> Diagnosis:
    """The diagnosis of a run of the language-model trainer: `throughtime.diagnose` of its model as it is trained.

    The model reads windows of the text that is kept for validation (of the training text, where none is), the state
    carried on, as in training. The data horizon is that of the training text: the mutual information, in bits, between
    the next symbol and each one before it. The optimiser's next step and the norms in the log are looked at too.

    checkpoint: `best`, `last`, or a name such as step-000200.     text: where the text is now, if it was moved.
    batches: so many windows, less where the text is short.        use: measure also how far back the model looks.
    Raises `CheckpointError`, `DataError`, and FlowError where nothing can be measured.
    """
    if batches < 1:
        raise ConfigError(f"batches must be at least 1, got {batches}")
    run, config, found = open_text_run(run_dir, text)
    with private_torch(config):
        session = Session(config, run.schema)
        session.restore(checkpoints.find(run.checkpoints, checkpoint))
        norms = [r.grad_norm for r in read_log(run.log, session.step)]
        session.model.eval()
        return diagnose(
            session.model,
            list(_windows(session.model, found.valid or found.train, batches)),
            _loss,
            data=asked(found),
            optimiser=session.optimiser,
            clip=config.clip_norm or None,
            norms=norms or None,
            batch_axis=1,
            use=use,
            batches=batches,
        )


def asked(text: TextData, most: int = MOST) -> Asked:
    """How far back the next symbol of a text depends on single ones before it, in bits (`dependence`), with the text
    itself, for what far symbols add to near ones.

    What is less than 1 % of the most that any one says does not count.
    """
    inputs, targets = text.train.inputs.flatten()[:most].long(), text.train.targets.flatten()[:most].long()
    # Near lags one by one, far ones by a factor of about 1.2, as far as the baseline can move the text out of reach.
    lags = sorted({*range(17), *(round(16 * 1.2**i) for i in range(28))})
    far = max(0, min(len(inputs) - 1000, (len(inputs) - SHUFFLES) // 5))
    pairs = dependence(
        inputs, targets, [d for d in lags if d <= far], shuffles=SHUFFLES, fraction=0.01, baseline="shift"
    )  # fmt: skip
    return Asked(pairs, series=(inputs, targets))


def _windows(model: SequenceModel, streams: Streams, most: int) -> Iterator[tuple[Any, Tensor]]:
    """Windows with the state that the model comes to them with; of two the first one only brings it there."""
    state: Any = None
    for index in range(min(most + 1, len(streams))):
        x, y = streams.window(index)
        if state is not None or len(streams) == 1:
            yield (x,) if state is None else (x, state), y
        with torch.no_grad():
            state = model(x, state)[1]


def _loss(out: tuple[Tensor, Any], targets: Tensor) -> Tensor:
    return functional.cross_entropy(out[0].flatten(0, 1), targets.flatten())
