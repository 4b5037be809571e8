"""Skip connections: nothing that is computed changes, the new paths are there, and they can be learnt."""

import pytest
import torch
from torch import nn

from throughtime import cures
from throughtime import nn as ttnn
from throughtime.errors import ConfigError

F64 = torch.float64


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.LSTM(3, 5, 3),
        lambda: nn.GRU(3, 5, 2, bidirectional=True, batch_first=True),
        lambda: nn.LSTM(3, 6, 2, proj_size=4),
        lambda: nn.RNN(3, 5, 2, bias=False, nonlinearity="relu"),
        lambda: ttnn.PeepholeLSTM(3, 5, 2),
    ],
)
def test_every_state_and_with_the_head_every_output_stays(make):
    layer = make().double()
    x = torch.randn(4, 4, 3, dtype=F64)
    y, state = layer(x)
    head = nn.Linear(y.shape[-1], 7).double()
    want = head(y)
    new, wide = cures.skip_connections(layer, head)
    y2, state2 = new(x)
    torch.testing.assert_close(wide(y2), want)
    torch.testing.assert_close(state2, state)
    assert y2.shape[-1] == layer.num_layers * y.shape[-1]
    torch.testing.assert_close(y2[..., -y.shape[-1] :], y)


def test_the_new_weights_begin_at_zero_and_get_a_gradient():
    layer, head = nn.LSTM(3, 5, 3), nn.Linear(5, 2)
    new, wide = cures.skip_connections(layer, head)
    for k in (1, 2):
        assert not getattr(new, f"weight_ih_l{k}")[:, :3].any()
    assert not wide.weight[:, :10].any()
    wide(new(torch.randn(6, 2, 3))[0]).pow(2).sum().backward()
    for k in (1, 2):
        assert getattr(new, f"weight_ih_l{k}").grad[:, :3].abs().min() > 0
    assert wide.weight.grad[:, :10].abs().min() > 0


def test_a_gradient_that_the_stack_loses_arrives_by_the_skip():
    """The way of the gradient in depth: layer 0 is cut off from the output by a dead layer above, and then is not."""
    layer, head = nn.RNN(3, 4, 2), nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight_ih_l1.zero_()
    x = torch.randn(5, 2, 3)
    head(layer(x)[0]).pow(2).sum().backward()
    assert not layer.weight_ih_l0.grad.any()
    new, wide = cures.skip_connections(layer, head)
    with torch.no_grad():
        wide.weight[:, :4] += 0.1
    wide(new(x)[0]).pow(2).sum().backward()
    assert new.weight_ih_l0.grad.abs().max() > 0


def test_the_old_layer_is_not_touched_and_what_was_frozen_stays_so():
    layer = nn.LSTM(3, 5, 2, dropout=0.3).eval()
    layer.weight_hh_l1.requires_grad_(False)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    new, head = cures.skip_connections(layer)
    assert head is None and new.dropout == 0.3 and not new.training
    assert not new.weight_hh_l1.requires_grad and new.weight_hh_l0.requires_grad
    with torch.no_grad():
        new.weight_hh_l0.zero_()
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


@pytest.mark.parametrize(
    "layer, head, message",
    [
        (nn.Linear(2, 3), None, "expected a recurrent layer"),
        (nn.LSTM(2, 3), None, "none to pass by"),
        (ttnn.Recurrent("gru", 2, 3, 2, skip=True), None, "already"),
        (nn.GRU(2, 3, 2), nn.Linear(4, 2), "its 3 outputs as input; came 4 inputs"),
        (nn.GRU(2, 3, 2), nn.Sequential(nn.Linear(3, 2)), "came Sequential"),
    ],
)
def test_refusals(layer, head, message):
    with pytest.raises(ConfigError, match=message):
        cures.skip_connections(layer, head)
