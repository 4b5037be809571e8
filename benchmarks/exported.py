"""What exported files cost to run: a layer as ONNX in onnxruntime, as a program in torch, and the layer itself.

    python benchmarks/exported.py

One sequence, one thread, interleaved medians; microseconds a call of 1 step and of 100 steps.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from measure import hold_to, machine, medians

import throughtime as tt

D, H = 64, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--least", type=float, default=0.02, help="seconds of a contender in a round")
    options = parser.parse_args()
    hold_to(1)
    print(machine())
    print(
        f"{'cell':>18} {'steps':>6} {'ONNX':>9} {'.pt2':>9} {'layer':>9}   microseconds a call, {D} inputs, {H} units"
    )
    for cell in ("lstm", "gru", "lstm-peephole", "gru-reset-before"):
        for steps in (1, 100):
            found = medians(contenders(cell, steps), options.rounds, options.least)
            print(
                f"{cell:>18} {steps:6} " + " ".join(f"{seconds * 1e6:9.0f}" for seconds in found.values()), flush=True
            )


def contenders(cell: str, steps: int) -> dict[str, Callable[[], object]]:
    layer = tt.Recurrent(cell, D, H)
    zeros = tuple(torch.zeros(1, 3, H) for _ in layer.cell.states)
    state = zeros if len(zeros) > 1 else zeros[0]
    with tempfile.TemporaryDirectory() as place:
        files = [tt.export(layer, Path(place) / f"m{e}", (torch.randn(5, 3, D), state)).path for e in (".onnx", ".pt2")]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(files[0].read_bytes(), options)
        program = torch.export.load(files[1]).module()
    x, first = torch.randn(steps, 1, D), tuple(s[:, :1].contiguous() for s in zeros)
    names = [place.name for place in session.get_inputs()]
    feed = dict(zip(names, [v.numpy() for v in (x, *first)], strict=True))
    given = first if len(first) > 1 else first[0]

    def ours() -> object:
        with torch.no_grad():
            return layer(x, given)

    return {"onnx": lambda: session.run(None, feed), "pt2": lambda: program(x, given), "ours": ours}


if __name__ == "__main__":
    main()
