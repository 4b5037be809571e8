"""The page of a trained run: its diagnosis, the exact map of its last layer, its text as the model reads it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from throughtime.errors import ConfigError
from throughtime.report.diagnoses import diagnosis_page
from throughtime.report.reading import reading_view
from throughtime.report.view import Page
from throughtime.train import load
from throughtime.train.diagnosing import diagnose_run
from throughtime.train.gradient import text_flow
from throughtime.train.model import LanguageModel
from throughtime.train.runlog import read_log
from throughtime.train.textrun import open_text_run


def run_page(
    run_dir: str | Path, *, checkpoint: str = "best", text: str | Path | None = None, use: bool = True
) -> Page:
    """The page of a run on text. Raises `CheckpointError`, `DataError`, ConfigError for a run on other data."""
    run, config, found = open_text_run(run_dir, text)
    model = load(run_dir, checkpoint)
    if not isinstance(model, LanguageModel):
        raise ConfigError(f"{run_dir} holds no language model")
    diagnosis = diagnose_run(run_dir, checkpoint=checkpoint, text=text, use=use)
    streams = found.valid or found.train
    settings = {
        "run": str(run.path), "checkpoint": checkpoint, "cell": config.cell, "hidden units": config.hidden,
        "layers": config.layers, "window": f"{config.window} steps", "batch": config.batch, "learning rate": config.lr,
    }  # fmt: skip
    page = diagnosis_page(diagnosis, title=run.path.resolve().name, settings=settings)
    measured = text_flow(model, streams, windows=4)
    last = page.models[-1]
    history = [(r.step, r.loss, r.valid) for r in read_log(run.log)]
    shown = replace(
        last, maps=measured.maps, reading=reading_view(model, streams), history=history,
        equations=model.recurrent.cell.equations,
    )  # fmt: skip
    return replace(page, models=[*page.models[:-1], shown], unit="symbol", asks="The text")
