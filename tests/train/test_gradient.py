"""The gradient through time of a language model: the parts of one window, and several windows together."""

import pytest
import torch
from torch.nn import functional

from throughtime.errors import DataError
from throughtime.flow import gradient_flow
from throughtime.train.data import Streams, Vocabulary
from throughtime.train.gradient import text_flow
from throughtime.train.kinds import LMConfig
from throughtime.train.model import LanguageModel


@pytest.fixture
def model():
    config = LMConfig(text="", cell="lstm", embedding=5, hidden=6, layers=2, dropout=0.3)
    return LanguageModel(config, Vocabulary("characters", "abcd"))


def streams(n=200):
    return streams_of(torch.randint(0, 4, (n,)))


def streams_of(numbers):
    return Streams(numbers[:-1], numbers[1:], batch=3, window=9)


def test_one_window_is_the_flow_of_that_window(model):
    text = streams()
    ours = text_flow(model, text, windows=1)
    model.eval()
    with torch.no_grad():
        state = model(text.window(0)[0])[1]
        x, targets = text.window(1)
        embedded = model.embedding(x)
    want = gradient_flow(
        model.recurrent,
        embedded,
        lambda y: functional.cross_entropy(model.output(y).flatten(0, 1), targets.flatten()),
        state,
    )
    assert ours.maps.keys() == {"z", "h", "c"}
    for of in want.maps:
        assert torch.equal(ours.maps[of], want.maps[of])


def test_windows_add_up_as_a_larger_batch_does(model):
    text = streams()
    one, three = text_flow(model, text, windows=1), text_flow(model, text, windows=3)
    rest = []
    for k in (1, 2):  # the same text without its first k windows, entered with the state that was carried there
        later = replace_windows(text, k)
        with torch.no_grad():
            model.eval()
            state = None
            for i in range(k):
                state = model(text.window(i)[0], state)[1]
        rest.append(window_maps(model, later, state))
    want = sum(m["h"].square() for m in rest) + one.maps["h"].square()
    torch.testing.assert_close(three.maps["h"], want.sqrt(), rtol=1e-6, atol=1e-12)


def replace_windows(text, k):
    later = streams_of(torch.zeros(100, dtype=torch.long))
    later.inputs, later.targets = text.inputs[:, 9 * k :], text.targets[:, 9 * k :]
    later.windows = text.windows - k
    return later


def window_maps(model, text, state):
    with torch.no_grad():
        state = model(text.window(0)[0], state)[1]
    x, targets = text.window(1)
    y = lambda y: functional.cross_entropy(model.output(y).flatten(0, 1), targets.flatten())  # noqa: E731
    with torch.no_grad():
        embedded = model.embedding(x)
    return gradient_flow(model.recurrent, embedded, y, state).maps


def test_training_mode_is_put_back_and_dropout_is_off(model):
    model.train()
    first, second = (text_flow(model, streams_fixed()) for _ in range(2))
    assert model.training and torch.equal(first.maps["z"], second.maps["z"])


def streams_fixed():
    return streams_of(torch.arange(200) % 4)


def test_a_text_of_one_window_is_too_short(model):
    with pytest.raises(DataError, match="from the second window"):
        text_flow(model, streams_of(torch.zeros(40, dtype=torch.long)))
