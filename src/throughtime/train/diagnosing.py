"""The diagnosis of a trained run: its model on its own data, its optimiser, its history of gradient norms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from throughtime.diagnosis import Diagnosis, diagnose
from throughtime.diagnosis.asked import Asked
from throughtime.diagnosis.sequences import Unseen
from throughtime.errors import ConfigError, DataError
from throughtime.train import checkpoint as checkpoints
from throughtime.train.asking import asked_of
from throughtime.train.data.schema import Schema, TaskSchema
from throughtime.train.looked_at import Looked, look, mean_loss
from throughtime.train.opened import Opened, open_run
from throughtime.train.runlog import read_log
from throughtime.train.session import Session, private_torch


def diagnose_run(
    run_dir: str | Path, *, checkpoint: str = "best", text: str | Path | None = None, batches: int = 6, use: bool = True
) -> Diagnosis:
    """The diagnosis of a run of the trainer, of any kind: `throughtime.diagnose` of its model as it is trained.

    The model reads the data that are kept for validation (those it is trained on, where none are), with its own loss in
    nats, the state carried on as in training. The data horizon is that of the training data: for a text the mutual
    information, in bits, between the next symbol and each one before it, else the dependence of the targets on the
    inputs (`throughtime.dependence`). The optimiser's next step and the norms in the log are looked at too.

    checkpoint: `best`, `last`, or a name such as step-000200.     text: where the data are now, if they were moved.
    batches: so many, less where the data are few.                 use: measure also how far back the model looks.
    Raises `CheckpointError`, `DataError`, and FlowError where nothing can be measured.
    """
    if batches < 1:
        raise ConfigError(f"batches must be at least 1, got {batches}")
    return diagnose_opened(open_run(run_dir, text), checkpoint=checkpoint, batches=batches, use=use)


def diagnose_opened(opened: Opened, *, checkpoint: str = "best", batches: int = 6, use: bool = True) -> Diagnosis:
    """The same of a run that is open."""
    run, config = opened.run, opened.config
    with private_torch(config):
        session = Session(config, run.schema)
        session.restore(checkpoints.find(run.checkpoints, checkpoint))
        norms = [r.grad_norm for r in read_log(run.log, session.step)]
        model = session.model
        model.eval()
        seen = look(model, opened.held, batches)
        if not seen:
            raise DataError(f"the data of {run.path} have no target to measure a loss of; keep more for validation")
        notes = _known(run.schema)
        data: Asked | None = None
        try:
            data = asked_of(opened.data, config)
        except Unseen as error:
            notes.append(f"the data horizon: {error}")
        lengths = seen[0].batch.lengths
        if use and lengths is not None:
            use = False
            notes.append(f"the use horizon: {_ragged(seen)}")
        found = diagnose(
            model,
            [v.pair(run.schema) for v in seen],
            mean_loss(run.schema),
            data=data,
            optimiser=session.optimiser,
            clip=config.clip_norm or None,
            norms=norms or None,
            lengths=lengths,
            batch_axis=1,
            use=use,
            batches=batches,
        )
        own = [n for n in found.notes if data is not None or not n.startswith("the data horizon: ")]
        return replace(found, notes=(*own, *notes))


def _ragged(seen: list[Looked]) -> str:
    return f"at least 8 sequences of one length are needed in a batch, and none of {len(seen)} batches has them"


def _known(schema: Schema) -> list[str]:
    """What a generated task says of itself."""
    if not isinstance(schema, TaskSchema):
        return []
    least, most = schema.rule.lags
    far = (
        f"{least} to {most}" if most is not None and most != least else f"{least}{' and more' if most is None else ''}"
    )
    return [f"the task {schema.task} is made so that a target is decided by inputs {far} steps before it"]
