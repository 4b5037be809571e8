"""What the page of a run on text has besides: the text as the model reads it, the map over all of its streams."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from throughtime.flow import capture
from throughtime.flow.recurrence import Recurrence
from throughtime.flow.tangent import Tangent
from throughtime.report.reading import reading_view
from throughtime.report.view import Page
from throughtime.train.data.streams import Streams
from throughtime.train.gradient import text_flow
from throughtime.train.model import LanguageModel
from throughtime.train.opened import Opened


def with_text(page: Page, model: LanguageModel, opened: Opened) -> Page:
    """The page of a run on text, its last layer shown in full."""
    streams = opened.held
    assert isinstance(streams, Streams)
    shares, eigenvalues = _inside(model, streams)
    shown = replace(
        page.models[-1], maps=text_flow(model, streams, windows=4).maps, map_steps=(0, 1),
        reading=reading_view(model, streams), shares=shares, eigenvalues=eigenvalues,
    )  # fmt: skip
    return replace(page, models=[*page.models[:-1], shown], unit="symbol")


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
