"""The size of a training step: worked out from the gradient, and measured on real optimisers."""

import math

import pytest
import torch

from throughtime import nn
from throughtime.errors import FlowError
from throughtime.flow.updates import Update, snapshot, step_sizes, update_sizes


def trained():
    module = nn.LSTM(3, 4)
    module(torch.randn(5, 2, 3))[0].square().sum().backward()
    return module


@pytest.mark.parametrize("lr", [0.3, 1e-3])
def test_worked_out_is_what_sgd_does(lr):
    module = trained().double()
    foretold, before = update_sizes(module, lr), snapshot(module)
    torch.optim.SGD(module.parameters(), lr=lr).step()
    taken = step_sizes(before, module)
    assert len(taken.updates) == len(foretold.updates) == 4
    for a, b in zip(foretold.updates, taken.updates, strict=True):
        assert a.name == b.name and a.ratio == pytest.approx(b.ratio, rel=1e-9)
    g, W = module.weight_hh_l0.grad, before["weight_hh_l0"]
    assert foretold["weight_hh_l0"].ratio == pytest.approx((lr * g.norm() / W.norm()).item())


def test_adam_takes_another_step_than_its_gradient_says():
    module = trained()
    before = snapshot(module)
    torch.optim.Adam(module.parameters(), lr=0.01).step()
    taken = step_sizes(before, module)
    # Its first step is lr for every element, whatever the gradient.
    for u in taken.updates:
        assert u.step == pytest.approx(0.01 * math.sqrt(before[u.name].numel()), rel=1e-3)
    assert taken.measured and "of the step taken" in str(taken)


@pytest.mark.parametrize(
    ("step", "weight", "label"),
    [
        (1e-3, 1.0, "healthy"), (1e-5, 1.0, "healthy"), (0.9e-5, 1.0, "stalled"), (0.0, 1.0, "stalled"),
        (0.1, 1.0, "healthy"), (0.11, 1.0, "too long"), (1e-3, 0.0, "from zero"), (0.0, 0.0, "stalled"),
        (math.nan, 1.0, "not finite"), (math.inf, 1.0, "not finite"), (1.0, math.nan, "not finite"),
    ],
)  # fmt: skip
def test_labels(step, weight, label):
    assert Update("w", step, weight).label == label


def test_a_vanished_gradient_stalls_and_a_huge_one_is_too_long():
    module = trained()
    assert set(update_sizes(module, 1e-9).labelled("stalled")) == set(dict(module.named_parameters()))
    assert set(update_sizes(module, 1e3).labelled("too long")) == set(dict(module.named_parameters()))


def test_what_float32_swallows_is_seen():
    """W - a*g = W: lr ||g|| is not 0, and yet no element moves."""
    W = torch.nn.Parameter(torch.ones(10))
    W.grad = torch.full((10,), 1e-3)
    foretold, before = update_sizes({"W": W}, 1e-5), snapshot({"W": W})
    torch.optim.SGD([W], lr=1e-5).step()
    taken = step_sizes(before, {"W": W})
    assert foretold["W"].ratio == pytest.approx(1e-8) and taken["W"].ratio == 0 and taken["W"].unmoved == 1
    assert "stalled, 100% of its elements did not move" in str(taken)


def test_rates_by_name_and_parameters_without_a_gradient():
    module = trained()
    module.bias_ih_l0.grad = None
    rates = {name: 0.1 * (n + 1) for n, (name, _) in enumerate(module.named_parameters())}
    found = update_sizes(module.named_parameters(), rates)
    assert found.missing == ("bias_ih_l0",) and "bias_ih_l0: no gradient" in str(found)
    W = module.bias_hh_l0
    assert found["bias_hh_l0"].step == pytest.approx(rates["bias_hh_l0"] * W.grad.norm().item())


def test_sparse_gradients_and_half_precision():
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1, 1, 4])).sum().backward()
    assert update_sizes(embedding, 1.0)["weight"].step == pytest.approx(math.sqrt(3 * 4 + 3))
    W = torch.nn.Parameter(torch.full((1000,), 200.0, dtype=torch.float16))
    W.grad = torch.ones(1000, dtype=torch.float16)
    assert update_sizes({"W": W}, 1.0)["W"].weight == pytest.approx(
        200 * math.sqrt(1000)
    )  # above float16's range squared


def test_refusals():
    module = nn.RNN(2, 3)
    with pytest.raises(FlowError, match=r"no parameter has a gradient; call loss.backward\(\) first"):
        update_sizes(module, 0.1)
    module = trained()
    for rate in (-1.0, math.nan, {"weight_ih_l0": 0.1}):
        with pytest.raises(FlowError, match=r"the learning rate of .* must be a number >= 0"):
            update_sizes(module, rate)
    with pytest.raises(FlowError, match="not the parameters of the snapshot: extra"):
        step_sizes({**snapshot(module), "extra": torch.ones(1)}, module)
    with pytest.raises(FlowError, match=r"W was \[2\] in the snapshot and is \[3\] now"):
        step_sizes({"W": torch.ones(2)}, {"W": torch.ones(3)})
    with pytest.raises(FlowError, match="no step of 'x' is held"):
        update_sizes(module, 0.1)["x"]
    with pytest.raises(FlowError, match="parameters by name"):
        update_sizes({"W": 3}, 0.1)
