"""Noise on the inputs while training: what it does to them, that it resumes exactly, and that it costs nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from throughtime.errors import ConfigError
from throughtime.train import LMConfig, load, resume, train
from throughtime.train.data import Vocabulary
from throughtime.train.data.schema import TextSchema
from throughtime.train.model import build, disturbed


def test_numbers_get_a_deviation_and_symbols_a_chance() -> None:
    x = torch.zeros(100, 20, 5)
    assert float(disturbed(x, 0.3).std()) == pytest.approx(0.3, rel=0.03)
    x = torch.tensor([0, 0, 0, 1]).repeat(100, 200)  # a replaced symbol is 1 in a quarter of the cases
    changed = disturbed(x, 0.2)
    assert float(((changed == 1) & (x == 0)).sum() / (x == 0).sum()) == pytest.approx(0.2 / 4, rel=0.1)
    assert float(((changed == 0) & (x == 1)).sum() / (x == 1).sum()) == pytest.approx(0.2 * 3 / 4, rel=0.1)
    lengths = torch.tensor([50] * 400 + [10] * 400)
    inside = torch.arange(100).unsqueeze(1) < lengths
    assert int(disturbed(torch.where(inside, 3, 7), 0.5, lengths)[inside].max()) == 3


def test_it_acts_in_training_only_and_a_chance_is_below_one(tiny: Callable[..., LMConfig]) -> None:
    schema = TextSchema(Vocabulary("bytes"))
    model, x = build(tiny(input_noise=0.5), schema), torch.randint(256, (30, 4))
    model.eval()
    torch.testing.assert_close(model(x)[0], model(x)[0], rtol=0, atol=0)
    model.train()
    assert not torch.equal(model(x)[0], model(x)[0])
    with pytest.raises(ConfigError, match="input_noise is a chance where symbols are read"):
        build(tiny(input_noise=1.0), schema)
    with pytest.raises(ConfigError, match="input_noise must be"):
        tiny(input_noise=-0.1)


def test_a_resumed_run_draws_the_same_noise(tiny: Callable[..., LMConfig], tmp_path: Path) -> None:
    config = tiny(input_noise=0.2, watch_budget=0.0)
    whole = train(config, tmp_path / "whole")
    train(tiny(input_noise=0.2, watch_budget=0.0, steps=20), tmp_path / "part")
    rest = resume(tmp_path / "part", steps=30)
    assert [r.loss for r in rest.history] == [r.loss for r in whole.history]
    clean = train(tiny(watch_budget=0.0), tmp_path / "clean")
    assert clean.history[0].loss != whole.history[0].loss
    for a, b in zip(load(rest.path, "last").parameters(), load(whole.path, "last").parameters(), strict=True):
        assert torch.equal(a, b)
