"""convert(): whole models, in place, there and back; and what it refuses."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import throughtime.nn as tn
from throughtime import cells
from throughtime.errors import BackendError, ConfigError


class Tagger(nn.Module):
    """Embedding, LSTM, linear: logits at each step."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.rnn = nn.LSTM(6, 7, 2, batch_first=True, bidirectional=True, dropout=0.3)
        self.head = nn.Linear(14, 11)

    def forward(self, tokens):
        return self.head(self.rnn(self.embed(tokens))[0])


class Translator(nn.Module):
    """An encoder, and a decoder that shares one of its layers."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleDict({"gru": nn.GRU(5, 5), "rnn": nn.RNN(5, 5, nonlinearity="relu")})
        self.decoder = nn.ModuleList([nn.GRU(5, 5), self.encoder["rnn"]])
        self.outside = [self.encoder["gru"]]  # a reference that no traversal of modules finds

    def forward(self, source, target):
        y, h = self.encoder["gru"](source)
        y, k = self.encoder["rnn"](y)
        return self.decoder[1](self.decoder[0](target, h)[0], k)[0] + self.outside[0](target)[0]


def test_a_tagger_and_its_optimiser():
    """Half of a training run on torch's layer, half on ours, equals the whole run on torch's."""
    tokens = torch.randint(0, 11, (4, 8), generator=torch.Generator().manual_seed(0))

    def train(model, opt, steps):
        for _ in range(steps):
            logits = model(tokens[:, :-1])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            opt.zero_grad()
            loss.backward()
            opt.step()
        return loss.item()

    torch.manual_seed(0)
    model = Tagger().double()
    twin = copy.deepcopy(model)
    opt = torch.optim.Adam(model.parameters(), lr=0.02)
    torch.manual_seed(1)  # dropout
    train(model, opt, 5)
    before = dict(model.named_parameters())
    assert tn.convert(model) is model
    assert type(model.rnn) is tn.LSTM and model.rnn.dropout == 0.3 and model.rnn.batch_first
    after = dict(model.named_parameters())
    assert list(before) == list(after) and all(before[n] is after[n] for n in before)
    loss = train(model, opt, 5)
    torch.manual_seed(1)
    assert loss == pytest.approx(train(twin, torch.optim.Adam(twin.parameters(), lr=0.02), 10), abs=1e-9)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-7)  # Adam magnifies the last digits of small gradients


def test_shared_layers_stay_shared():
    torch.manual_seed(0)
    model = Translator().double().eval()
    source, target = torch.randn(4, 2, 5, dtype=torch.float64), torch.randn(3, 2, 5, dtype=torch.float64)
    want = model(source, target)
    state = copy.deepcopy(model.state_dict())
    tn.convert(model)
    assert type(model.decoder[0]) is tn.GRU and type(model.encoder["rnn"]) is tn.RNN
    assert model.decoder[1] is model.encoder["rnn"] and model.outside[0] is model.encoder["gru"]
    assert not any(m.training for m in model.modules())
    torch.testing.assert_close(model(source, target), want, rtol=0, atol=1e-10)
    assert list(model.state_dict()) == list(state)
    model.load_state_dict(state)
    assert tn.convert(model) is model  # nothing left to do
    tn.convert(model, to="torch")
    assert type(model.decoder[0]) is nn.GRU and type(model.decoder[1]) is nn.RNN
    assert not any(hasattr(m, "clip") for m in model.modules())
    torch.testing.assert_close(model(source, target), want, rtol=0, atol=1e-10)
    model.double().train()
    copy.deepcopy(model)(source, target).sum().backward()


def test_the_model_itself_with_its_hooks():
    layer = nn.LSTM(3, 4, 2)
    seen = []
    handles = [
        layer.register_forward_pre_hook(lambda m, args: seen.append("pre")),
        layer.register_forward_hook(lambda m, args, out: seen.append("forward")),
        layer.register_full_backward_hook(lambda m, gi, go: seen.append("backward")),
    ]
    layer.note = "kept"
    assert tn.convert(layer, clip=1.0, truncated=True, backend="torch") is layer
    assert type(layer) is tn.LSTM and layer.note == "kept"
    assert (layer.clip, layer.truncated, layer.backend) == (1.0, True, "torch")
    x = torch.randn(5, 2, 3, requires_grad=True)
    layer(x)[0].sum().backward()
    assert seen == ["pre", "forward", "backward"]
    for handle in handles:
        handle.remove()
    layer(x)
    assert len(seen) == 3
    with pytest.raises(BackendError, match=r"trained with clip=1.0, which torch has not"):
        tn.convert(layer, to="torch")
    assert type(layer) is tn.LSTM
    layer.clip, layer.truncated = None, False
    y = layer(x)[0]
    tn.convert(layer, to="torch")
    assert type(layer) is nn.LSTM
    torch.testing.assert_close(layer(x)[0], y)


@pytest.mark.parametrize("cell, kind, extra", [
    ("rnn", nn.RNN, {}),
    ("rnn-relu", nn.RNN, {}),
    ("lstm", nn.LSTM, {}),
    (cells.ProjectedLSTM(), nn.LSTM, {"proj_size": 2}),
    ("gru", nn.GRU, {}),
])  # fmt: skip
def test_recurrent_becomes_torchs(cell, kind, extra):
    torch.manual_seed(0)
    layer = tn.Recurrent(cell, 3, 4, 2, bidirectional=True, batch_first=True, dropout=0.5, **extra).double()
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    torch.manual_seed(1)
    want = layer(x)
    params = list(layer.parameters())
    tn.convert(layer, to="torch")
    assert type(layer) is kind and all(p is q for p, q in zip(params, layer.parameters(), strict=True))
    assert all(p is q for p, q in zip(params, layer._flat_weights, strict=True))  # torch's own list of them
    torch.manual_seed(1)
    torch.testing.assert_close(layer(x), want, rtol=0, atol=1e-10)
    fresh = kind(3, 4, 2, bidirectional=True, batch_first=True, dropout=0.5, dtype=torch.float64,
                 **extra, **({"nonlinearity": layer.nonlinearity} if kind is nn.RNN else {}))  # fmt: skip
    assert repr(layer) == repr(fresh) and set(vars(layer)) == set(vars(fresh))
    copy.deepcopy(layer)(x)


def test_tuned_rnn_becomes_torchs():
    layer = tn.convert(tn.TunedRNN(3, 4, orthogonal=True), to="torch")
    assert type(layer) is nn.RNN and layer.nonlinearity == "relu" and not hasattr(layer, "orthogonal")


@pytest.mark.parametrize("make, why", [
    (lambda: tn.PeepholeLSTM(3, 4), r"torch has no layer with the cell PeepholeLSTM\(\)"),
    (lambda: tn.Recurrent("rnn-logistic", 3, 4), r"torch has no layer with the cell Simple\('logistic'\)"),
    (lambda: tn.Recurrent("lstm", 3, 4, 2, skip=True), "torch has no skip connections"),
    (lambda: tn.Recurrent("gru", 3, 4, truncated=True), "trained with truncated=True"),
    (lambda: tn.GRU(3, 4, clip=2.0), r"trained with clip=2\.0"),
])  # fmt: skip
def test_what_torch_has_not(make, why):
    layer = make()
    kind = type(layer)
    with pytest.raises(BackendError, match=f"the model itself .* cannot become one of torch's: .*{why}"):
        tn.convert(layer, to="torch")
    model = nn.Sequential(layer, tn.GRU(4, 4))
    with pytest.warns(UserWarning, match=f"left in place, for torch has no such layer: 0 .*{why}"):
        tn.convert(model, to="torch")
    assert type(model[0]) is kind and type(model[1]) is nn.GRU


class Own(nn.LSTM):
    """A user's subclass, with a forward of its own."""

    def forward(self, input, hx=None):
        return super().forward(2 * input, hx)


def test_subclasses_are_left():
    model = nn.Sequential(Own(3, 4))
    tn.convert(model)
    assert type(model[0]) is Own
    with pytest.raises(BackendError, match=r"the model itself \(Own\) is a subclass of LSTM"):
        tn.convert(model[0])


def refused():
    yield "parametrised", parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0")
    pruned = nn.GRU(3, 4)
    prune.l1_unstructured(pruned, "weight_ih_l0", 0.5)
    yield "computes its weight_ih_l0 from other parameters", pruned
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield "computes its weight_hh_l0", nn.utils.weight_norm(nn.LSTM(3, 4), "weight_hh_l0")
    wrapped = nn.RNN(3, 4)
    wrapped.forward = lambda input, hx=None: nn.RNN.forward(wrapped, input, hx)
    yield "has its forward replaced", wrapped
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"torch\.quantize_per_tensor|torch.ao.quantization is deprecated")
        warnings.simplefilter("ignore", DeprecationWarning)
        yield "is quantised", torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.LSTM(3, 4)), {nn.LSTM})[0]
        yield "is a scripted GRU", torch.jit.script(nn.GRU(3, 4))


def test_refuses_and_changes_nothing():
    seen = 0
    for why, layer in refused():
        plain = nn.LSTM(3, 4)
        with pytest.raises(BackendError, match=rf"1\.inner .*{why}"):
            tn.convert(nn.Sequential(plain, nn.ModuleDict({"inner": layer})))
        with pytest.raises(BackendError, match=f"the model itself .*{why}"):
            tn.convert(layer)
        assert type(plain) is nn.LSTM
        seen += 1
    assert seen == 6


def test_back_refuses_what_is_parametrised():
    layer = parametrizations.weight_norm(tn.LSTM(3, 4), "weight_hh_l0")
    assert layer(torch.zeros(5, 2, 3))[0].shape == (5, 2, 4)  # ours runs it; the type is what cannot be swapped
    with pytest.raises(BackendError, match="parametrised"):
        tn.convert(layer, to="torch")


def test_bad_options():
    with pytest.raises(ConfigError, match='to must be "throughtime" or "torch"; came \'tf\''):
        tn.convert(nn.LSTM(3, 4), to="tf")
    with pytest.raises(ConfigError, match=r"model must be a torch.nn.Module; came function"):
        tn.convert(lambda x: x)
    with pytest.raises(ConfigError, match="clip must be a positive number"):
        tn.convert(nn.LSTM(3, 4), clip=0)
    with pytest.raises(ConfigError, match="rules of our layers"):
        tn.convert(tn.LSTM(3, 4), to="torch", clip=1.0)


def test_compiles_after_conversion():
    torch.manual_seed(0)
    model = Tagger().eval()
    tokens = torch.randint(0, 11, (2, 5))
    want = model(tokens)
    tn.convert(model)
    torch._dynamo.reset()
    y = torch.compile(model, backend="aot_eager", fullgraph=True)(tokens)
    torch.testing.assert_close(y, want)
