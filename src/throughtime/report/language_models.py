"""From trained language models and what was measured on them to a page."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping, Sequence

import torch

from throughtime import __version__
from throughtime.diagnosis import Dependence, verdict
from throughtime.flow import GradientFlow
from throughtime.report.view import DependenceView, ModelView, Page, SampleView
from throughtime.train import LanguageModel, TextData, TrainResult


def model_view(
    name: str, model: LanguageModel, result: TrainResult, flow: GradientFlow, sample: SampleView | None = None
) -> ModelView:
    """What a page shows of one trained language model: its history, its gradient through time, what it writes."""
    return ModelView(
        name,
        flow.cell,
        equations=model.recurrent.cell.equations,
        history=[(r.step, r.loss, r.valid) for r in result.history],
        profile={of: flow.profile(of) for of in flow.maps},
        maps=flow.maps,
        horizon={of: flow.horizon(of) for of in flow.maps},
        half_life={of: flow.half_life(of) for of in flow.maps},
        sample=sample,
        valid=result.best_valid,
    )


def language_models_page(
    title: str, text: TextData, asked: Dependence, models: Sequence[ModelView], settings: Mapping[str, object]
) -> Page:
    """A page on several language models of one text; `settings` are shown before what is known of the machine.

    The headline horizons are those of the net inputs z: how far back the gradient still reaches the parameters.
    """
    window = text.train.window_length
    reach = {m.name: m.horizon["z"] for m in models if "z" in m.horizon}
    where = {
        "throughtime": __version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
    }
    return Page(
        title,
        verdict(asked.horizon(), reach, window),
        models,
        window,
        data_horizon=None if asked.horizon().steps < 0 else asked.horizon(),
        dependence=DependenceView(asked.lags, asked.bits, [asked.threshold] * len(asked.lags)),
        settings={**settings, **where},
        floors={"uniform guess": math.log2(len(text.vocabulary)), "symbol frequencies": unigram_bits(text)},
        unit="byte" if text.vocabulary.kind == "bytes" else "character",
    )


def unigram_bits(text: TextData) -> float:
    """Entropy of the symbols of the training text, in bits a symbol: the loss of a model without any memory."""
    counts = torch.bincount(text.train.inputs.flatten().long()).double()
    p = counts[counts > 0] / counts.sum()
    return float(-(p * p.log2()).sum())
