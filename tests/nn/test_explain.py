"""explain says what runs, and it is what runs."""

import pytest
import torch

from throughtime import nn
from throughtime.engine.backends import VARIABLE
from throughtime.errors import BackendError, ConfigError


def test_a_model_with_layers_of_all_kinds():
    model = torch.nn.Sequential(nn.LSTM(3, 4), torch.nn.Linear(4, 4), torch.nn.GRU(4, 4), nn.RNN(4, 4, backend="torch"))
    lines = nn.explain(model).splitlines()
    assert lines[0].startswith("0: LSTM runs on 'cpu': ")
    assert lines[1] == "2: torch's own layer; throughtime.convert(model) makes it ours"
    assert lines[2] == "3: Simple (tanh) runs on 'torch': it was asked for"


def test_what_the_kernels_cannot_do_is_said():
    assert "runs on 'torch': not cpu: its kernels keep states in float32" in nn.explain(nn.GRU(2, 3).bfloat16())
    assert "runs on 'torch': not cpu: its kernels run on the CPU" in nn.explain(nn.GRU(2, 3, device="meta"))
    assert "runs on 'reference'" in nn.explain(nn.RNN(2, 3, dtype=torch.complex64))
    with torch.autocast("cpu", dtype=torch.float16):
        assert "here torch.float16 beside torch.float32" in nn.explain(nn.GRU(2, 3))
        assert "runs on 'cpu'" in nn.explain(nn.GRU(2, 3).double())  # autocast leaves float64 as it is


def test_asked_for_and_impossible():
    with pytest.raises(BackendError, match="'cpu' cannot run this: its kernels keep states in float32"):
        nn.GRU(2, 3, backend="cpu").bfloat16()(torch.zeros(1, 1, 2, dtype=torch.bfloat16))


def test_the_environment_decides_for_auto_only(monkeypatch):
    monkeypatch.setenv(VARIABLE, "torch")
    assert "runs on 'torch': THROUGHTIME_BACKEND asks for it" in nn.explain(nn.RNN(2, 3))
    assert "runs on 'cpu': it was asked for" in nn.explain(nn.RNN(2, 3, backend="cpu"))
    monkeypatch.setenv(VARIABLE, "fpga")
    with pytest.raises(BackendError, match="unknown backend 'fpga'"):
        nn.explain(nn.RNN(2, 3))


def test_nothing_to_explain():
    assert nn.explain(torch.nn.Linear(2, 2)) == "no recurrent layer of torch or throughtime in this module"


def test_only_modules_are_explained():
    with pytest.raises(ConfigError, match=r"must be a torch\.nn\.Module; came str"):
        nn.explain("model")
