"""The page of a trained run of any kind: its diagnosis, its loss in its own unit, its horizons over training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from throughtime.diagnosis.history import read_history
from throughtime.report.diagnoses import diagnosis_page
from throughtime.report.text_runs import with_text
from throughtime.report.view import FindingView, ModelView, Page, TableView
from throughtime.train import LanguageModel
from throughtime.train.diagnosing import diagnose_opened
from throughtime.train.loop import load_from
from throughtime.train.measures import measure
from throughtime.train.model import SequenceModel
from throughtime.train.opened import Opened, open_run
from throughtime.train.rundir import Run
from throughtime.train.runlog import read_log

ASKS = {"text": "The text", "forecast": "The series", "task": "The task"}
FEW = 200  # batches of a part that is measured in full


def run_page(
    run_dir: str | Path, *, checkpoint: str = "best", text: str | Path | None = None, use: bool = True
) -> Page:
    """The page of a run of any kind; of a text with the text itself.

    text: where the data are now, if they were moved. Raises `CheckpointError`, `DataError`, FlowError.
    """
    opened = open_run(run_dir, text)
    run, config = opened.run, opened.config
    diagnosis = diagnose_opened(opened, checkpoint=checkpoint, use=use)
    model = load_from(run, checkpoint)
    settings = {
        "run": str(run.path), "kind": config.kind, "data": getattr(config, config.source), "checkpoint": checkpoint,
        "cell": config.cell, "hidden units": config.hidden, "layers": config.layers,
        "window": f"{config.window} steps" if config.window else "whole sequences",
        "batch": config.batch, "learning rate": config.lr,
    }  # fmt: skip
    page = diagnosis_page(diagnosis, title=run.path.resolve().name, settings=settings)
    models = _with_history(page.models, run, config.clip_norm or None, model.recurrent.cell.equations)
    page = replace(
        page, models=models, asks=ASKS.get(config.kind, "The task"), loss_unit=run.schema.unit,
        floors=_floors(opened), findings=[*page.findings, *_without(page)],
    )  # fmt: skip
    if isinstance(model, LanguageModel):
        return with_text(page, model, opened)
    return replace(page, tables=[*_measures(opened, model), *page.tables])


def _with_history(models: Sequence[ModelView], run: Run, clip: float | None, equations: str) -> list[ModelView]:
    """What training left in the run's files: the horizons of each recurrence, the loss and the norms of the whole."""
    records = read_log(run.log)
    seen = [
        (r.step, s.place.removesuffix(", layer 0"), s.place, s.horizon)
        for r in (read_history(run.watched).records if run.watched.exists() else ())
        for s in r.recurrences
        if s.horizon is not None
    ]
    found = [
        replace(m, watched=[(step, h) for step, *names, h in seen if m.name in names], norms=(), clip=None)
        for m in models
    ]
    return [
        *found[:-1],
        replace(
            found[-1], history=[(r.step, r.loss, r.valid) for r in records], equations=equations,
            norms=[(r.step, r.grad_norm) for r in records], clip=clip,
        ),
    ]  # fmt: skip


def _floors(opened: Opened) -> dict[str, float]:
    """What a generated task says of its own loss; the references of other kinds are in other units."""
    return dict(opened.data.references.get("valid", {})) if opened.config.kind == "task" else {}


def _without(page: Page) -> list[FindingView]:
    """Why a figure is not there."""
    if any(m.maps for m in page.models):
        return []
    why = (
        "A map has a row for each loss, and here a loss enters at the last step of a sequence alone: the lag profile "
        "is all of it. (Of a very large model there is none either.)"
    )
    return [FindingView("note", "", "there is no map", why)]


@torch.no_grad()
def _measures(opened: Opened, model: SequenceModel) -> list[TableView]:
    """How good the model is on what is kept for validation, with simple rivals."""
    source = opened.data.valid
    if source is None or len(source) > FEW:
        return []
    rows = [(name, f"{value:.4g}", "") for name, value in measure(model, source).items()]
    known = opened.data.references.get("valid", {})
    rows += [(name, f"{value:.4g}", "to compare with") for name, value in known.items()]
    return [TableView("On the data kept for validation", ("", "", ""), rows)]
