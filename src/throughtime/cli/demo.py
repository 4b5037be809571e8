"""`throughtime demo`: a simple network and an LSTM learn a text side by side; who reaches what it asks for?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics

import torch

from throughtime.cli.options import Demo
from throughtime.cli.progress import Board
from throughtime.diagnosis import dependence
from throughtime.files import write_file, writing
from throughtime.report import SampleView, write
from throughtime.report.language_models import language_models_page, model_view
from throughtime.train import LMConfig, generate, load, read_text, train
from throughtime.train.gradient import text_flow

MODELS = {"RNN": "rnn", "LSTM": "lstm"}
PROMPT = "The class "
# Near lags one by one, far ones by a factor of about 1.2: enough to see where the dependence ends.
LAGS = sorted({*range(17), *(round(16 * 1.2**i) for i in range(24))})


def main(options: Demo, words: Sequence[str] = ()) -> int:
    """Trains, measures and writes the page; prints where it is."""
    began = time.perf_counter()
    out = _new_directory(options.out)
    # Every Python carries this text, the help on its topics: about 460 KB of English.
    text_file = out / "python-topics.txt"
    write_file(text_file, "\n\n".join(topics[name] for name in sorted(topics)).encode())
    config = LMConfig(
        text=str(text_file), window=128, batch=32, hidden=128, steps=options.steps, lr=4e-3, valid_every=100,
        valid_windows=10, seed=options.seed,
    )  # fmt: skip
    text = read_text(config)
    symbols = torch.cat([text.train.inputs, text.train.targets[:, -1:]], 1).flatten().long()
    with Board() as board:
        board.print(f"text    {text_file}: {len(symbols):,} characters, {len(text.vocabulary)} different")
        asked = dependence(symbols[:-1], symbols[1:], LAGS, shuffles=10)
        board.print(f"asks    what comes next depends on what came {asked.horizon()} back (mutual information)")
        views = []
        for name, cell in MODELS.items():
            this = LMConfig(**{**vars(config), "cell": cell})
            result = train(this, out / cell, on_step=board.add(name, this.steps))
            model = load(result.path)
            assert text.valid is not None
            flow = text_flow(model, text.valid)
            board.print(f"{name:7} {result.best_valid:.3f} bits per character; its gradient reaches {flow.horizon()}")
            sample = SampleView(PROMPT, generate(model, PROMPT, 400, temperature=0.7, seed=options.seed))
            views.append(model_view(name, model, result, flow, sample))
    settings = {
        "text": "the help topics of Python's pydoc",
        "characters": f"{len(symbols):,} to train on",
        "hidden units": config.hidden,
        "window": f"{config.window} steps of truncated BPTT, the state carried on",
        "batch": config.batch,
        "steps": config.steps,
        "learning rate": f"{config.lr:g}, Adam, gradient norm clipped at {config.clip_norm:g}",
        "seed": config.seed,
        "seconds": f"{time.perf_counter() - began:.0f}",
    }
    page = language_models_page("How far back can they learn?", text, asked, views, settings)
    path = write(page, out / "report.html")
    print(f"\n{page.verdict}\n\nThe page: {path.resolve()}")
    return 0


def _new_directory(wanted: Path) -> Path:
    path, n = wanted, 1
    while path.exists():
        n += 1
        path = wanted.with_name(f"{wanted.name}-{n}")
    with writing(path):
        path.mkdir(parents=True)
    return path
