"""What a user may hand to diagnose(): every usual form of a batch and of a loss is read as meant."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from throughtime.diagnosis.batches import read_batches
from throughtime.errors import FlowError

x, y = torch.randn(4, 3), torch.randn(4, 1)


def both(out, target):
    return (out - target).sum()


def test_one_batch_and_a_loss_of_the_output():
    (batch,), of = read_batches(x, lambda out: out.sum(), 8)
    assert batch.args[0] is x and batch.targets is None
    assert of(torch.ones(2), batch) == 2
    (batch,), _ = read_batches((x, y), lambda out: out.sum(), 8)
    assert batch.args == (x, y)
    (batch,), _ = read_batches({"input": x}, lambda out: out.sum(), 8)
    assert batch.kwargs["input"] is x and batch.args == ()


def test_one_pair_and_several():
    for criterion in (both, nn.MSELoss(), nn.functional.mse_loss):
        (batch,), of = read_batches((x, y), criterion, 8)
        assert batch.args == (x,) and batch.targets is y
        assert of(y, batch) == 0
    batches, _ = read_batches([(x, y)] * 5, both, 3)
    assert len(batches) == 3
    loader = DataLoader(TensorDataset(x, y), batch_size=2)
    batches, _ = read_batches(loader, both, 8)
    assert [len(b.targets) for b in batches] == [2, 2]


def test_several_arguments_and_targets():
    for pair in (((x, y), y), (x, y, y)):
        (batch,), _ = read_batches([pair], both, 8)
        assert len(batch.args) == 2 and batch.targets is y
    (batch,), _ = read_batches([({"input": x}, y)], both, 8)
    assert batch.kwargs == {"input": x} and batch.targets is y


def test_an_endless_stream_is_not_exhausted():
    def stream():
        while True:
            yield x, y

    batches, _ = read_batches(stream(), both, 4)
    assert len(batches) == 4


def test_what_a_loss_takes():
    assert read_batches(x, lambda out, scale=2.0: out.sum() * scale, 1)[0][0].targets is None
    assert read_batches((x, y), lambda *given: given[0].sum(), 1)[0][0].targets is y


@pytest.mark.parametrize("given", [x, {"input": x}, [x], [(x,)], []])
def test_a_loss_that_wants_targets_says_so(given):
    with pytest.raises(FlowError, match="call diagnose"):
        read_batches(given, both, 8)
