"""A run's page and its text as the model reads it: each row is the gradient of one character's loss."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import throughtime.cli
from throughtime.report.reading import reading_view
from throughtime.train import LMConfig, load, read_text, train

TEXT = "to be or not to be, that is the question.\n" * 60


@pytest.fixture(scope="module", params=["lstm", "gru", "rnn"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    (root / "text.txt").write_text(TEXT)
    config = LMConfig(
        text=str(root / "text.txt"), cell=request.param, hidden=8, embedding=4, window=24, batch=2, steps=4,
        valid_every=4, checkpoint_every=4, threads=1,
    )  # fmt: skip
    train(config, root / "run")
    return root / "run"


def test_each_row_is_the_gradient_of_one_loss(run: Path) -> None:
    model = load(run)
    text = read_text(model.config, model.vocabulary)
    assert text.valid is not None and len(text.valid) > 2
    seen = reading_view(model, text.valid, steps=20)
    assert len(seen.symbols) == 21 and "".join(seen.symbols) in TEXT
    # The same by brute force: the loop in float64, the loss of one symbol alone, autograd for every state.
    (x0, _), (x, y) = text.valid.window(0), text.valid.window(1)
    double = model.double()
    state = double.recurrent(double.embedding(x0[:, :1].long()))[1]
    leaves, logits = [], []
    for k in range(20):
        _, state = double.recurrent(double.embedding(x[k : k + 1, :1].long()), state)
        parts = list(state) if isinstance(state, tuple) else [state]
        h = parts[0]
        if not h.requires_grad:
            h = h.requires_grad_()
        h.retain_grad()
        leaves.append(h)
        parts[0] = h
        state = tuple(parts) if isinstance(state, tuple) else h
        logits.append(double.output(h[-1]))
    for t in (0, 7, 19):
        loss = F.cross_entropy(logits[t], y[t, :1].long())
        assert seen.bits[t] == pytest.approx(loss.item() / math.log(2), rel=1e-4)
        grads = torch.autograd.grad(loss, leaves[: t + 1], retain_graph=True)
        assert seen.map[t][: t + 1] == pytest.approx([g.norm().item() for g in grads], rel=1e-3, abs=1e-12)


def test_what_the_gates_hold_is_their_product(run: Path) -> None:
    model = load(run)
    text = read_text(model.config, model.vocabulary)
    assert text.valid is not None
    seen = reading_view(model, text.valid, steps=15)
    if model.config.cell == "rnn":
        assert seen.kept is None and seen.gates == {}
        return
    keep, write = ("f", "i") if model.config.cell == "lstm" else ("u", "u")
    for t in range(15):
        written = seen.gates[write][t] if model.config.cell == "lstm" else 1 - seen.gates[keep][t]
        assert seen.kept[t][t] == pytest.approx(written, rel=1e-6)
        assert all(later <= earlier for later, earlier in zip(seen.kept[t][:t], seen.kept[t - 1][:t], strict=True))


def test_the_command_makes_a_page(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert throughtime.cli.main(["report", str(run), "--no-use", "--out", str(tmp_path / "x.html")]) == 0
    page = (tmp_path / "x.html").read_text("utf-8")
    for title in ("The text itself", "What was found", "What each parameter learns from", "The spectrum"):
        assert title in page
    assert str(tmp_path / "x.html") in capsys.readouterr().out
    assert throughtime.cli.main(["report", str(tmp_path / "nothing")]) == 2
    assert "there is no" in capsys.readouterr().err
    (tmp_path / "bad.safetensors").write_bytes(b"nothing good")
    assert throughtime.cli.main(["report", str(tmp_path / "bad.safetensors")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
