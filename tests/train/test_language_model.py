"""Tests of throughtime.train.model and throughtime.train.sampling."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from throughtime.errors import ConfigError, DataError, NonFiniteError
from throughtime.train import LanguageModel, LMConfig, Vocabulary, generate, stream

Tiny = Callable[..., LMConfig]
VOCABULARY = Vocabulary("characters", "\nabc")


@pytest.fixture
def model(tiny: Tiny) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(tiny(), VOCABULARY)


@pytest.mark.parametrize("options", [{"cell": "lstm"}, {"cell": "gru", "layers": 2}, {"layers": 2, "skip": True}])
def test_a_state_carried_over_windows_gives_what_one_window_gives(tiny: Tiny, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = LanguageModel(tiny(**options), VOCABULARY).double()
    x = torch.randint(4, (10, 3))
    whole, _ = model(x)
    first, state = model(x[:4])
    second, _ = model(x[4:], state)
    assert whole.shape == (10, 3, 4)
    torch.testing.assert_close(torch.cat([first, second]), whole)


def test_an_unknown_cell_names_the_cells_there_are(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"there is no cell 'lsmt' \(did you mean lstm\?\); the cells are rnn, .*gru"):
        LanguageModel(tiny(cell="lsmt"), VOCABULARY)


def test_the_same_seed_writes_the_same_text(model: LanguageModel) -> None:
    text = generate(model, "ab", 40, 1.0, seed=3)
    assert len(text) == 40 and set(text) <= set("\nabc")
    assert text == generate(model, "ab", 40, 1.0, seed=3) == "".join(stream(model, "ab", 40, 1.0, seed=3))
    assert text != generate(model, "ab", 40, 1.0, seed=4)


def test_sampling_leaves_the_callers_random_numbers_and_mode_alone(model: LanguageModel) -> None:
    before = torch.get_rng_state()
    assert model.training
    generate(model, "ab", 10)
    assert model.training and torch.equal(before, torch.get_rng_state())


def test_temperature_0_takes_the_likeliest_and_tiny_temperatures_agree(model: LanguageModel) -> None:
    text = generate(model, "ab", 20, 0.0)
    logits, _ = model(VOCABULARY.encode("ab" + text)[:, None])
    assert VOCABULARY.decode(logits[1:-1, 0].argmax(1).tolist()) == text
    assert text == generate(model, "ab", 20, 1e-300, seed=5)


def test_frequencies_follow_the_softmax(model: LanguageModel) -> None:
    logits, _ = model(VOCABULARY.encode("ab")[:, None])
    p = torch.softmax(logits[-1, 0].double() / 0.5, 0)
    draws = [generate(model, "ab", 1, 0.5, seed) for seed in range(400)]
    counts = torch.tensor([draws.count(symbol) for symbol in VOCABULARY.characters])
    # four standard errors of a binomial share of 400 draws
    assert bool(((counts / 400 - p).abs() <= 4 * (p * (1 - p) / 400).sqrt()).all())


def test_an_empty_prompt_stands_for_a_newline(model: LanguageModel, tiny: Tiny) -> None:
    assert generate(model, "", 20) == generate(model, "\n", 20)
    without = LanguageModel(tiny(), Vocabulary("characters", "xyz"))
    assert generate(without, "", 20) == generate(without, "x", 20)
    assert generate(model, "", 0) == ""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"length": -1}, "length must be at least 0"),
        ({"temperature": -0.1}, "temperature must be finite and at least 0"),
        ({"temperature": float("nan")}, "temperature must be finite"),
        ({"temperature": float("inf")}, "temperature must be finite"),
        ({"seed": -1}, "seed must be from 0"),
    ],
)
def test_bad_options_are_refused_at_the_call(model: LanguageModel, options: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        stream(model, "a", **options)  # type: ignore[arg-type]


def test_an_unknown_symbol_in_the_prompt_is_named(model: LanguageModel) -> None:
    with pytest.raises(DataError, match="'d', 'e' are not in the vocabulary"):
        stream(model, "abcde")


def test_broken_weights_are_reported(model: LanguageModel) -> None:
    with torch.no_grad():
        model.output.bias[0] = float("nan")
    with pytest.raises(NonFiniteError, match="the model's output is not finite"):
        generate(model, "a", 5)
    assert model.training
