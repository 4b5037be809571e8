"""A trained run as one file for other programs: ONNX or torch.export, with what its numbers mean."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.nn.export import Exported
from throughtime.nn.export import export as export_model
from throughtime.train.data.schema import Schema, schema_to_plain
from throughtime.train.heads import LEAST_SCALE
from throughtime.train.kinds import to_plain
from throughtime.train.loop import load_from
from throughtime.train.model import SequenceModel
from throughtime.train.rundir import Run

METADATA = "throughtime.json"
"""The name under which a file carries what its numbers mean: a key of ONNX metadata, an extra file of a .pt2."""
STEPS, BATCH = 67, 3  # of the example: enough that most symbols of a small vocabulary are among its numbers


def export(run_dir: str | Path, path: str | Path, *, checkpoint: str = "best") -> Exported:
    """Write the trained model of a run to a file ending in .onnx or .pt2; see `throughtime.nn.export`.

        output [steps, batch, size], h_out, c_out = file(input, h, c)

    input is [steps, batch] numbers of symbols (int64), or [steps, batch, columns], normalised; output is what the head
    reads, [1, batch, size] where a sequence has one label. The states are carried: give what came out with the next
    steps, zeros with the first. Steps and batch may be any. A bidirectional model takes no states and gives none.

    The file carries, as JSON under the name throughtime.json, the run's options, its schema (vocabulary, normalisation,
    labels) and how the outputs are read. It is written only if it computes what the model computes.
    Raises what `throughtime.nn.export` and `load` raise.
    """
    run = Run.open(Path(run_dir))
    model = load_from(run, checkpoint)
    states = [] if model.directions == 2 else list(model.recurrent.step_cell().states)
    example: tuple[Any, ...] = (_example(run.schema),)
    if states:
        zeros = _zeros(model, BATCH)
        example = (*example, zeros[0] if len(zeros) == 1 else zeros)
    return export_model(
        _Flat(model) if not states else model, path, example,
        inputs=["input", *states], outputs=["output", *(f"{name}_out" for name in states)], sizes=["steps", "batch"],
        metadata={METADATA: json.dumps(meaning(run))},
    )  # fmt: skip


def meaning(run: Run) -> dict[str, Any]:
    """What a program needs to know to use the file, as JSON has it."""
    schema = run.schema
    head = {"kind": type(schema.head).__name__, **asdict(schema.head)}  # type: ignore[call-overload]
    how = {
        "Softmax": "p = softmax(output)",
        "Bernoullis": "p = sigmoid(output)",
        "Value": "the number itself",
        "Mixture": "output as [3, leads, components]: log w (by log_softmax over components), mean, raw; "
        f"scale = softplus(raw) + {LEAST_SCALE}; y = base + offset + factor * number",
    }
    return {
        "format": 1,
        **to_plain(run.config),
        "schema": schema_to_plain(schema),
        "head": {**head, "read as": how[head["kind"]]},
        "input": "numbers of symbols" if schema.symbols else "(columns - mean) / deviation, where they are normalised",
    }


class _Flat(nn.Module):
    """A model that reads whole sequences only: no state goes in or out."""

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[0]


def _example(schema: Schema) -> Tensor:
    if schema.symbols:  # the check draws its symbols from these
        return torch.linspace(0, schema.symbols - 1, STEPS * BATCH).long().view(STEPS, BATCH)
    return torch.randn(STEPS, BATCH, schema.width, generator=torch.Generator().manual_seed(0))


def _zeros(model: SequenceModel, batch: int) -> tuple[Tensor, ...]:
    layer = model.recurrent
    return tuple(torch.zeros(layer.num_layers, batch, layer.hidden_size) for _ in layer.step_cell().states)
