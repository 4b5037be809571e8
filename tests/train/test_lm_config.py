"""Tests of throughtime.train.config."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from throughtime.errors import ConfigError
from throughtime.train.kinds import LMConfig


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("hidden", 0, "hidden must be at least 1, got 0"),
        ("hidden", 8.0, "hidden must be a whole number, got 8.0"),
        ("hidden", True, "hidden must be a whole number"),
        ("window", -3, "window must be at least 1"),
        ("batch", 10**12, "batch must be at most"),
        ("threads", -1, "threads must be at least 0"),
        ("seed", -1, "seed must be at least 0"),
        ("lr", 0.0, "lr must be greater than 0"),
        ("lr", float("nan"), "lr must be a finite number"),
        ("lr", "fast", "lr must be a finite number, got 'fast'"),
        ("clip_norm", -1.0, "clip_norm must be greater than 0, or 0"),
        ("dropout", 1.0, "dropout must be at least 0 and less than 1"),
        ("valid_fraction", 1.0, "valid_fraction must be at least 0 and less than 1"),
        ("symbols", "notes", "symbols must be one of characters, bytes, words, got 'notes'"),
        ("test_fraction", 0.95, "valid_fraction 0.1 and test_fraction 0.95 leave nothing to train on"),
        ("schedule", "steps", "schedule must be one of constant, linear, cosine"),
        ("precision", "fp8", "precision must be one of float32, bf16"),
        ("optimiser", "lion", "optimiser must be one of adam, sgd"),
        ("skip", 1, "skip must be true or false"),
        ("guard", 1, "guard must be true or false"),
        ("compile", "yes", "compile must be true or false"),
        ("watch_budget", -0.1, "watch_budget must be at least 0, a share of the time, got -0.1"),
        ("watch_budget", float("nan"), "watch_budget must be a finite number"),
        ("cell", 3, "cell must be a string"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(option: str, value: object, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LMConfig("x.txt", **{option: value})  # type: ignore[arg-type]
    assert says in str(caught.value)


def test_config_cannot_be_changed_in_place() -> None:
    with pytest.raises(FrozenInstanceError):
        LMConfig("x.txt").hidden = 3  # type: ignore[misc]


def test_only_what_leaves_the_model_and_its_data_alone_may_change() -> None:
    config = LMConfig("x.txt", lr=0.1)
    assert config.changed(lr=0.05, steps=7) == LMConfig("x.txt", lr=0.05, steps=7)
    assert config.changed(hidden=config.hidden) == config
    with pytest.raises(ConfigError, match=r"hidden cannot change .* \(it was 128, got 64\)"):
        config.changed(hidden=64)
    with pytest.raises(ConfigError, match="there is no option 'hiden'"):
        config.changed(hiden=64)
    with pytest.raises(ConfigError, match="lr must be greater than 0"):
        config.changed(lr=-1.0)


def test_digest_is_of_the_fixed_options_only() -> None:
    config = LMConfig("x.txt")
    assert (
        config.digest() == config.changed(lr=0.5, steps=9, text="y.txt", threads=3, guard=False, compile=True).digest()
    )
    assert config.digest() != LMConfig("x.txt", hidden=9).digest()
    assert config.digest() != LMConfig("x.txt", seed=1).digest()
