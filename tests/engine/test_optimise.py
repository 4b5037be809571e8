"""The tape optimiser: what is kept, what is merged, and that neither changes what a tape computes."""

import pytest
import torch

from throughtime.engine import derive
from throughtime.engine.interpret import MEANING, evaluate
from throughtime.engine.optimise import FUSED, fuse, inference, split
from throughtime.engine.trace import trace

from .problems import ALL, F64

MERGED = {
    "copy": lambda a: a,
    "fma": lambda a, b, c: a * b + c,
    "fms": lambda a, b, c: a * b - c,
    "fnma": lambda a, b, c: c - a * b,
    "lerp": lambda a, b, c: (1 - a) * c + a * b,
    "tanh_fma": lambda a, b, c: torch.tanh(a * b + c),
    "sigmoid_fma": lambda a, b, c: torch.sigmoid(a * b + c),
    "mul_tanh": lambda a, b: a * torch.tanh(b),
    "mul_dsigmoid": lambda a, b, c: a * b * c * (1 - c),
    "mul_dtanh": lambda a, b, c: a * b * (1 - c * c),
    "dtanh_add": lambda a, b, c: a * (1 - b * b) + c,
    "add_dtanh": lambda a, b, c: (a + b) * (1 - c * c),
}


def run(tape, inputs, monkeypatch):
    for name, meaning in MERGED.items():
        monkeypatch.setitem(MEANING, name, meaning)
    values = dict(enumerate(inputs))
    evaluate([(len(inputs) + i, op) for i, op in enumerate(tape.ops)], values)
    return {(o.kind, o.name): [values[v] for v in o.values] for o in tape.outputs}


def inputs_for(tape, H=6, B=4):
    shapes = {"w": (H,), "m": (H, H)}
    return [torch.randn(shapes.get(i.kind, (B, H)), dtype=F64) for i in tape.inputs]


def test_every_merged_operation_is_checked_here():
    assert MERGED.keys() == FUSED.keys()


@pytest.mark.parametrize("name", ALL)
def test_merging_changes_nothing(name, monkeypatch):
    for tape in (trace(ALL[name]()), derive(trace(ALL[name]()))):
        inputs = inputs_for(tape)
        assert len(fuse(tape).ops) <= len(tape.ops)
        ours, theirs = run(fuse(tape), inputs, monkeypatch), run(tape, inputs, monkeypatch)
        for key in theirs:
            torch.testing.assert_close(ours[key], theirs[key])


@pytest.mark.parametrize("name", ALL)
def test_both_halves_together_are_the_derivative(name, monkeypatch):
    tape = trace(ALL[name]())
    states = tape.names("s")
    whole = derive(tape)
    inputs = inputs_for(whole)
    named = {(i.kind, i.name): v for i, v in zip(whole.inputs, inputs, strict=True)}
    wanted = run(whole, inputs, monkeypatch)
    for shown in ((True,) * len(states), (True,) + (False,) * (len(states) - 1)):
        cut = split(tape, shown)
        given = dict(named)
        for (kind, out), (value, *_) in run(
            cut.forward, [named[i.kind, i.name] for i in cut.forward.inputs], monkeypatch
        ).items():
            given["n" if kind == "s" else kind, out] = value
        for s, there in zip(states, shown, strict=True):
            part = torch.randn_like(named["g", s]) if there else 0
            given["y", s], given["d", s] = part, named["g", s] - part
        ours = run(cut.backward, [given[i.kind, i.name] for i in cut.backward.inputs], monkeypatch)
        assert ours.keys() == wanted.keys()
        for key in wanted:
            torch.testing.assert_close(ours[key], wanted[key])


def test_what_is_kept():
    # The activations of the gates; tanh(c) is computed again from c, and relu knows its own derivative.
    kept = {name: split(trace(ALL[name]()), (True, True)[: len(trace(ALL[name]()).outputs)]).kept for name in ALL}
    assert (kept["lstm"], kept["lstm-peephole"], kept["gru"]) == (4, 4, 4)
    assert kept["rnn"] == kept["rnn-relu"] == kept["preactivation"] == kept["additive-state"] == 0


def test_an_lstm_in_six_operations():
    ops = [op.name for op in inference(trace(ALL["lstm"]())).ops]
    assert ops == ["sigmoid", "sigmoid", "sigmoid", "mul_tanh", "fma", "mul_tanh"]
