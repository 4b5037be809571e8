"""The page of a trained run: its diagnosis, the exact map of its last layer, its text as the model reads it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from throughtime.errors import ConfigError
from throughtime.flow import capture
from throughtime.flow.recurrence import Recurrence
from throughtime.flow.tangent import Tangent
from throughtime.report.diagnoses import diagnosis_page
from throughtime.report.reading import reading_view
from throughtime.report.view import Page
from throughtime.train import load
from throughtime.train.data.streams import Streams
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
    records = read_log(run.log)
    history = [(r.step, r.loss, r.valid) for r in records]
    shares, eigenvalues = _inside(model, streams)
    shown = replace(
        last, maps=measured.maps, map_steps=(0, 1), reading=reading_view(model, streams), history=history,
        shares=shares, eigenvalues=eigenvalues, norms=[(r.step, r.grad_norm) for r in records],
        clip=config.clip_norm or None, equations=model.recurrent.cell.equations,
    )  # fmt: skip
    return replace(page, models=[*page.models[:-1], shown], unit="symbol", asks="The text")


def _inside(model: LanguageModel, streams: Streams) -> tuple[dict[str, Tensor], dict[str, list[tuple[float, float]]]]:
    """Of the last layer, in one window: the shares of each parameter's gradient by lag; the eigenvalues of U's first
    block, and of the state Jacobian in the middle of the window, for the first sequence."""
    x, y = streams.window(min(1, len(streams) - 1))
    with capture(model) as captured:
        functional.cross_entropy(model(x.long())[0].flatten(0, 1), y.long().flatten()).backward()
    model.zero_grad(set_to_none=True)
    found = captured.recurrences[-1]
    shares = {name: p.by_lag.contribution for name, p in found.shares(norms=False).parameters.items()}
    r = found.recurrence
    assert isinstance(r, Recurrence)
    eigenvalues = {"J": _complex(Tangent(r).jacobian(len(r.output) // 2)[0])}
    U = r.weights.weight_hh
    if U is not None and U.numel():
        eigenvalues["U"] = _complex(U.detach().double()[: U.shape[1]])
    return shares, eigenvalues


def _complex(matrix: Tensor) -> list[tuple[float, float]]:
    return [(v.real, v.imag) for v in torch.linalg.eigvals(matrix).tolist()]
