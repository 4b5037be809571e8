"""The data horizon of batches as training loops have them: layouts, labels, padding, encoders, old inputs together."""

import pytest
import torch
from torch import nn

from throughtime.diagnosis.asked import measure_data, measure_given
from throughtime.diagnosis.pooled import pooled_dependence
from throughtime.diagnosis.sequences import Axes, Sequences, Unseen, axes_of, see
from throughtime.errors import DataError
from throughtime.flow import capture
from throughtime.train.tasks import by_name

T, N = 12, 40


def real(d):
    x = torch.randn(N, T, 1)
    y = torch.roll(x, d, 1)
    y[:, :d] = torch.randn(N, d, 1)
    return x, y


def symbols(d, K=5):
    x = torch.randint(K, (N, T))
    y = torch.roll(x, d, 1)
    y[:, :d] = torch.randint(K, (N, d))
    return x, y


def horizon(found):
    return measure_data([found]).pairs.horizon().steps


@pytest.mark.parametrize("d", [0, 4])
@pytest.mark.parametrize("batch_first", [True, False])
def test_layouts(d, batch_first):
    def turned(v):
        return v if batch_first else v.transpose(0, 1)

    axes = Axes(T, N, batch_first)
    x, y = real(d)
    assert horizon(see((turned(x),), turned(y), axes)) == d
    assert horizon(see((turned(x),), turned(y)[..., 0], axes)) == d
    assert horizon(see((turned(x),), turned(y).flatten(0, 1), axes)) == d
    x, y = symbols(d)
    assert horizon(see((turned(x),), turned(y), axes)) == d
    assert horizon(see((turned(x),), turned(y).reshape(-1), axes)) == d
    one_hot = nn.functional.one_hot(turned(x), 5).float()
    seen = see((one_hot,), turned(y), axes)
    assert torch.equal(seen.x, x) and horizon(seen) == d


def test_labels_count_from_the_last_step():
    x = torch.randn(N, T, 1)
    seen = see((x,), (x[:, 4, 0] > 0).long(), Axes(T, N, True))
    assert seen.form == "label" and horizon(seen) == T - 1 - 4
    assert horizon(see((x,), x[:, 2], Axes(T, N, True))) == T - 1 - 2


def test_labels_of_padded_sequences_count_from_each_ones_own_end():
    lengths = torch.randint(8, T + 1, (N,))
    x = torch.randn(N, T, 1) * (torch.arange(T) < lengths[:, None])[..., None]
    y = x[torch.arange(N), lengths - 6]
    assert horizon(see((x,), y, Axes(T, N, True), None, lengths)) == 5


def test_steps_without_a_target_are_left_out():
    x, y = symbols(6)
    y[:, :8] = -100
    assert horizon(see((x,), y, Axes(T, N, True))) == 6
    with pytest.raises(Unseen, match="no step at which all"):
        measure_data([see((x,), torch.full_like(y, -100), Axes(T, N, True))])


def test_few_sequences_are_put_end_to_end():
    x, y = torch.randn(3, 120, 1), None
    y = torch.roll(x, 7, 1)
    found = measure_data([Sequences(x, y, "each")])
    assert found.pairs.horizon().steps == 7 and "end to end" in found.notes[0]
    with pytest.raises(Unseen, match="too few"):
        measure_data([Sequences(x[:, :5], y[:, 0], "label")])


def test_batches_of_one_shape_are_taken_together():
    parts = [Sequences(*(v[k : k + 10] for v in real_pair), "each") for real_pair in [real(3)] for k in (0, 10, 20)]
    odd = Sequences(torch.randn(10, T + 1, 1), torch.randn(10, T + 1, 1), "each")
    found = measure_data([*parts, odd])
    assert found.pairs.horizon().steps == 3 and not any("end to end" in n for n in found.notes)


def test_an_encoder_counts_from_its_end():
    x = torch.randint(5, (64, T))
    y = torch.stack([x[:, 3], torch.randint(5, (64,)), x[:, 9]], 1)
    found = measure_data([Sequences(x, y, "handed")])
    assert [d for d, b in zip(found.pairs.lags, found.pairs.beyond(), strict=True) if b] == [T - 1 - 9, T - 1 - 3]
    assert measure_data([Sequences(x, torch.randint(5, (64, 3)), "handed")]).pairs.horizon().steps == -1
    ragged = y.clone()
    ragged[:, 1] = -100
    assert measure_data([Sequences(x, ragged, "handed")]).pairs.horizon().steps == T - 1 - 3


class Two(nn.Module):
    """Two layers; the second gets the whole output of the first, or its last state as its own first."""

    def __init__(self, whole):
        super().__init__()
        self.one, self.two, self.whole = nn.GRU(2, 4), nn.GRU(4 if whole else 2, 4), whole

    def forward(self, x):
        y, h = self.one(x)
        return self.two(y)[0] if self.whole else self.two(x[:3], h)[0]


@pytest.mark.parametrize("whole", [True, False])
def test_who_hands_only_its_last_state_on(whole):
    model = Two(whole)
    with capture(model) as captured:
        model(torch.randn(6, 5, 2)).sum().backward()
    axes, handed = axes_of(captured)
    assert axes == (6, 5, False) and handed == (None if whole else (3, 5, False))


def test_cells_that_hand_on():
    class Cells(nn.Module):
        def __init__(self, attend):
            super().__init__()
            self.one, self.two, self.attend = nn.GRUCell(2, 4), nn.LSTMCell(2, 4), attend

        def forward(self, x):
            h, all_h = x.new_zeros(5, 4), 0.0
            for v in x:
                h = self.one(v, h)
                all_h = all_h + h
            state = (h, h)
            for v in x:
                state = self.two(v, state)
            return state[0] + (all_h if self.attend else 0)

    for attend in (True, False):
        model = Cells(attend)
        with capture(model) as captured:
            model(torch.randn(6, 5, 2)).sum().backward()
        assert (axes_of(captured)[1] is None) == attend


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ("text", torch.zeros(N), "the input is no tensor"),
        (torch.randn(N, T, 1), "text", "the target is no tensor"),
        (torch.randn(N, T + 1, 1), torch.zeros(N), "does not show the 12 steps"),
        (torch.randn(N, T, 1), torch.zeros(N + 1), "neither one a step"),
    ],
)
def test_what_cannot_be_seen_is_said(x, y, message):
    with pytest.raises(Unseen, match=message):
        see((x,), y, Axes(T, N, True))


def test_data_handed_over():
    x, y = symbols(5)
    assert measure_given(x, y).pairs.horizon().steps == 5
    assert measure_given(nn.functional.one_hot(x).float(), y).pairs.horizon().steps == 5
    series = torch.randint(4, (3000,))
    assert measure_given(series, torch.roll(series, 11)).pairs.horizon().steps == 11
    with pytest.raises(Unseen, match="too few"):
        measure_given(series[:20], series[:20])
    for inputs, targets in [(torch.randn(4, 3, 2, 2), torch.zeros(4)), (x, y[:5]), (x, y[:, :5]), ("text", y)]:
        with pytest.raises(DataError):
            measure_given(inputs, targets)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_adding_task_is_seen_by_all_old_inputs_together(seed):
    sample = by_name("adding", 30).sample(150, torch.Generator().manual_seed(seed))
    x, y = sample.inputs.transpose(0, 1), sample.targets[-1]
    found = pooled_dependence(x, y, list(range(0, 30, 3)))
    assert found.horizon().steps >= 12, "half of the summands lie farther back than 15 steps"
    assert pooled_dependence(x, y[torch.randperm(150)], list(range(0, 30, 3))).horizon().steps == -1
    with pytest.raises(DataError, match="at least 20"):
        pooled_dependence(x[:5], y[:5], [0])
