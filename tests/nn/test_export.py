"""export(): ONNX files run by onnxruntime and programs run by torch alone give what the model gives."""

from __future__ import annotations

import subprocess
import sys

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import throughtime as tt
from throughtime import cells
from throughtime.errors import ConfigError, ExportError
from throughtime.files import WriteError
from throughtime.nn import export as exported
from throughtime.nn.export import export

FORMATS = (".onnx", ".pt2")


class Each(nn.Module):
    """Every built-in cell, in two directions, side by side, and two of them stacked; their states are carried."""

    def __init__(self) -> None:
        super().__init__()
        kinds = [cells.by_name(name) for name in cells.NAMES]
        layers = [tt.Recurrent(cell, 3, 4, bidirectional=True) for cell in kinds]
        layers.append(tt.Recurrent(cells.ProjectedLSTM(), 3, 4, num_layers=2, proj_size=2))
        layers.append(tt.Recurrent("gru-reset-before", 3, 4, num_layers=2, skip=True, bias=False))
        self.layers = nn.ModuleList(layers)

    def forward(self, x, states):
        out = [layer(x, state) for layer, state in zip(self.layers, states, strict=True)]
        return torch.cat([y for y, _ in out], -1), tuple(state for _, state in out)

    def example(self, T, B):
        with torch.no_grad():
            return torch.randn(T, B, 3), self(torch.randn(2, B, 3), [None] * len(self.layers))[1]


def flat(value):
    return torch.utils._pytree.tree_leaves(value)


def run_file(path, args):
    """What a file computes, run by nothing of ours."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [i.name for i in session.get_inputs()]
        given = dict(zip(names, [v.numpy() for v in flat(args)], strict=True))
        return [torch.from_numpy(v) for v in session.run(None, given)]
    return flat(torch.export.load(path).module()(*args))


@pytest.mark.parametrize("ending", FORMATS)
def test_every_cell_at_other_sizes_than_the_examples(ending, tmp_path):
    model = Each()
    found = export(model, tmp_path / f"each{ending}", model.example(5, 3), sizes=["steps", "batch"])
    assert found.difference < 1e-5
    assert found.outputs["output"] == ("float32", ("steps", "batch", 14 * 8 + 2 + 8))
    for T, B in ((1, 1), (12, 2)):
        args = model.example(T, B)
        with torch.no_grad():
            wanted = flat(model(*args))
        for a, b in zip(run_file(found.path, args), wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_the_operations_are_the_standard_ones(tmp_path):
    model = nn.Sequential(*[Only(layer) for layer in (tt.nn.LSTM(3, 3), nn.GRU(3, 3), tt.nn.RNN(3, 3))])
    export(model, tmp_path / "m.onnx", torch.randn(5, 2, 3), metadata={"note": "a b"})
    loaded = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(loaded, full_check=True)
    kinds = [node.op_type for node in loaded.graph.node]
    assert [k for k in kinds if k in ("LSTM", "GRU", "RNN", "Scan")] == ["LSTM", "GRU", "RNN"]
    assert {p.key: p.value for p in loaded.metadata_props}["note"] == "a b"
    export(model, tmp_path / "m.pt2", torch.randn(5, 2, 3), metadata={"note": "a b"})
    files = {"note": ""}
    program = torch.export.load(tmp_path / "m.pt2", extra_files=files)
    targets = [str(node.target) for node in program.graph.nodes]
    assert {"aten.lstm.input", "aten.gru.input", "aten.rnn_tanh.input"} < set(targets) and "scan" not in targets
    assert files == {"note": "a b"}


class Only(nn.Module):
    """A layer's output without its state."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


def test_a_program_runs_where_throughtime_is_not(tmp_path):
    layer = tt.Recurrent("lstm-peephole", 3, 4)
    export(layer, tmp_path / "p.pt2", torch.randn(5, 2, 3))
    x = torch.randn(7, 1, 3)
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys, torch; sys.modules['throughtime'] = None\n"
        "y = torch.export.load('p.pt2').module()(torch.load('x.pt'))[0]; torch.save(y, 'y.pt')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "y.pt"), layer(x)[0], rtol=0, atol=1e-6)


class Model(nn.Module):
    """A user's own: torch's layer, batch first, dropout, training rules, numbers of symbols in."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 3)
        self.layer = nn.LSTM(3, 4, 2, batch_first=True, dropout=0.5)
        self.over = tt.Recurrent("rnn", 4, 4, batch_first=True, clip=1.0, memory="low", backend="torch")
        self.out = nn.Linear(4, 7)

    def forward(self, x, state):
        y, state = self.layer(self.embedding(x), state)
        return self.out(self.over(y)[0]).log_softmax(-1), state


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_users_model_stays_as_it_is(ending, dtype, tmp_path):
    model = Model().to(dtype)
    state = (torch.zeros(2, 2, 4, dtype=dtype), torch.zeros(2, 2, 4, dtype=dtype))
    found = export(model, tmp_path / f"m{ending}", (torch.arange(10).view(2, 5) % 7, state), inputs=["x", "h", "c"])
    assert found.inputs["x"][0] == "int64" and found.inputs["h"][0] == str(dtype)[6:]
    assert found.difference < (1e-5 if dtype == torch.float32 else 1e-12)
    assert type(model.layer) is nn.LSTM and model.training and model.over.backend == "torch" and model.over.clip == 1
    assert all(p.requires_grad for p in model.parameters())
    lines = str(found).splitlines()
    assert lines[0] == str(found.path) and lines[1].split()[:3] == ["in", "x", "int64"] and "agrees" in lines[-1]


class Odd(tt.Cell):
    """A step with every kind of operation that is not in the built-in cells."""

    gates = ("a", "k")
    states = ("h",)
    units = ("p",)

    def step(self, z, s, w):
        a = torch.where(z.a > w.p, torch.exp(-z.a * z.a), torch.clamp(z.a, -0.5, 0.25)) + torch.sign(s.h)
        b = torch.maximum(z.k, s.h) - torch.minimum(nn.functional.softplus(z.k), torch.erf(s.h)) / (1 + torch.abs(z.a))
        c = torch.sqrt(torch.abs(b) + 1) + (torch.abs(a) + 1) ** 1.5 + torch.log(a * a + 1) + (z.k >= 0)
        d = torch.sin(c) + torch.cos(b) + 1 / (a * a + 2) - c.mean(-1, keepdim=True)
        return torch.tanh(d) * 0.5 + torch.relu(s.h.detach()) * 0.1 + torch.clamp(d, max=0.1)


@pytest.mark.parametrize("ending", FORMATS)
def test_every_operation_of_a_step(ending, tmp_path):
    layer = tt.Recurrent(Odd(), 3, 5)
    assert export(layer, tmp_path / f"m{ending}", torch.randn(5, 2, 3)).difference < 1e-5
    if ending == ".onnx":
        with pytest.raises(ExportError, match=r"onnxruntime cannot run it .*Erf.*double|Could not find .*Erf"):
            export(layer.double(), tmp_path / "d.onnx", torch.randn(5, 2, 3).double())


class Mean(tt.Cell):
    """A state that is the same in all units, and one that does not look at the input."""

    gates = ("a",)
    states = ("h", "n")

    def step(self, z, s, w):
        return (z.a + s.n).mean(-1, keepdim=True), s.n * 0.5 + 1


@pytest.mark.parametrize("ending", FORMATS)
def test_states_at_every_step(ending, tmp_path):
    class States(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = tt.nn.LSTM(3, 4, bidirectional=True), tt.Recurrent(Mean(), 3, 4)

        def forward(self, x):
            return self.a.states(x)["c"], self.b(x)[0], self.b.states(x)["n"]

    assert export(States(), tmp_path / f"m{ending}", torch.randn(5, 2, 3)).difference < 1e-5


@pytest.mark.parametrize("ending", FORMATS)
def test_a_file_that_differs_is_not_written(ending, tmp_path, monkeypatch):
    place = tmp_path / f"m{ending}"
    place.write_bytes(b"before")
    if ending == ".onnx":
        from throughtime.nn import export_onnx

        monkeypatch.setitem(export_onnx._SAME, "tanh", "Sigmoid")
    else:
        from throughtime.engine import interpret

        monkeypatch.setitem(interpret.MEANING, "tanh", torch.sigmoid)
    layer = tt.Recurrent("lstm-peephole", 3, 4, backend="cpu")
    with pytest.raises(ExportError, match="differs from the model by"):
        export(layer, place, torch.randn(5, 2, 3))
    assert place.read_bytes() == b"before" and list(tmp_path.iterdir()) == [place]


def test_what_cannot_be_exported_says_so(tmp_path, monkeypatch):
    layer, x = tt.nn.RNN(3, 4), torch.randn(5, 2, 3)
    for path, example, names, word in (
        ("m.txt", x, {}, "must end in .onnx or .pt2"),
        ("m.pt2", (x, None), {}, "example must be the arguments of a call"),
        ("m.pt2", (), {}, "example must be the arguments of a call"),
        ("m.pt2", x, {"inputs": ["a", "b"]}, "inputs must be 1 different names"),
        ("m.pt2", x, {"outputs": ["a", "a"]}, "outputs must be 2 different names"),
        ("m.pt2", x, {"sizes": ["a", "b", "c"]}, "sizes must be 2 different names"),
    ):
        with pytest.raises(ConfigError, match=word):
            export(layer, tmp_path / path, example, **names)
    with pytest.raises(ConfigError, match=r"model must be a torch.nn.Module; came int"):
        export(3, tmp_path / "m.pt2", x)  # type: ignore[arg-type]

    class Packs(Only):
        def forward(self, x):
            y, _ = self.layer(nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3])))
            return nn.utils.rnn.pad_packed_sequence(y)[0]

    class Decides(Only):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ExportError, match=r"torch.export cannot trace Decides"):
        export(Decides(layer), tmp_path / "m.pt2", x)
    with pytest.raises(ExportError, match=r"packed|cannot trace"):
        export(Packs(layer), tmp_path / "m.onnx", x)
    with pytest.raises(WriteError, match="cannot write"):
        export(layer, tmp_path / "nowhere" / "m.pt2", x)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ExportError, match=r"needs onnxruntime: pip install throughtime\[export\]"):
        export(layer, tmp_path / "m.onnx", x)
    assert not list(tmp_path.iterdir())


def test_it_is_found_under_its_names():
    assert tt.export is tt.nn.export is exported is export
