"""What one step of a trained model costs as data come in: `Online.step`, beside the same model made of torch.nn.

    python benchmarks/online.py

Batch 1, one step a call, one thread, interleaved medians; microseconds a step. Both end in probabilities. The weights
are those of the run's own model; that both say the same is checked before anything is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from measure import hold_to, machine, medians
from torch import Tensor, nn

from throughtime.train import LMConfig, NotesConfig, Online, SequenceModel
from throughtime.train.data import Vocabulary
from throughtime.train.data.schema import NotesSchema, TextSchema
from throughtime.train.model import build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--least", type=float, default=0.02, help="seconds of a contender in a round")
    options = parser.parse_args()
    hold_to(1)
    print(machine())
    print(f"{'model':>22} {'Online.step':>12} {'torch.nn':>9} {'ratio':>6}   microseconds a step")
    for cell in ("lstm", "gru", "rnn"):
        for hidden, layers in ((32, 1), (128, 1), (256, 2)):
            print(row(f"text {cell} {layers}x{hidden}", text(cell, hidden, layers), options), flush=True)
    print(row("notes lstm 1x128", notes("lstm", 128), options), flush=True)


def row(name: str, model: SequenceModel, options: argparse.Namespace) -> str:
    ours, theirs = steps(model)
    for _ in range(5):
        torch.testing.assert_close(ours(), theirs(), rtol=0, atol=1e-5)
    found = medians({"ours": ours, "theirs": theirs}, options.rounds, options.least)
    a, b = found["ours"] * 1e6, found["theirs"] * 1e6
    return f"{name:>22} {a:12.1f} {b:9.1f} {a / b:6.2f}"


def text(cell: str, hidden: int, layers: int) -> SequenceModel:
    config = LMConfig("t", cell=cell, hidden=hidden, layers=layers, embedding=32)
    return build(config, TextSchema(Vocabulary("characters", "".join(map(chr, range(97, 161))))))


def notes(cell: str, hidden: int) -> SequenceModel:
    return build(NotesConfig("a", cell=cell, hidden=hidden), NotesSchema(88))


def steps(model: SequenceModel) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """One step of our model, and one of the same in torch's modules, each with a state of its own."""
    online = Online(model)
    symbols = model.schema.symbols
    given = 5 if symbols else torch.bernoulli(torch.full((88,), 0.1))
    layer = torchs(model)
    state: list = [None]

    def theirs() -> Tensor:
        with torch.inference_mode():
            x = torch.tensor([[given]]) if symbols else given.view(1, 1, -1)  # type: ignore[union-attr]
            y, state[0] = layer(model.embedding(x), state[0])
            outputs = model.output(y)[-1, 0]
            return outputs.softmax(-1) if symbols else outputs.sigmoid()

    return lambda: online.step(given), theirs


def torchs(model: SequenceModel) -> nn.Module:
    """torch's own layer with the weights of the model's."""
    ours = model.recurrent
    kind = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[model.config.cell]
    layer = kind(ours.input_size, ours.hidden_size, ours.num_layers)
    layer.load_state_dict(ours.state_dict())
    return layer.eval().requires_grad_(False)


if __name__ == "__main__":
    main()
