"""One step at a time, made ready: it says what the model's own call says, for every kind of input and output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from throughtime.errors import DataError
from throughtime.train import LMConfig, NotesConfig, Online, TaskConfig
from throughtime.train import online as place
from throughtime.train.data import Vocabulary
from throughtime.train.data.schema import NotesSchema, TaskSchema, TextSchema
from throughtime.train.model import SequenceModel, build

CHARACTERS = TextSchema(Vocabulary("characters", "abcd"))
MODELS: dict[str, Callable[[], SequenceModel]] = {
    "text": lambda: build(LMConfig("t", hidden=7, embedding=3), CHARACTERS),
    "text, layers": lambda: build(LMConfig("t", hidden=7, embedding=3, layers=3, cell="gru", skip=True), CHARACTERS),
    "notes": lambda: build(NotesConfig("n", hidden=7), NotesSchema(6)),
    "notes, mapped": lambda: build(NotesConfig("n", hidden=7, embedding=3, cell="additive-state"), NotesSchema(6)),
    "task": lambda: build(TaskConfig("adding", hidden=7, lag=9), TaskSchema("adding", 9)),
}


def given(model: SequenceModel) -> list[Any]:
    if model.schema.symbols:
        return ["a", 2, "c", torch.tensor(3), torch.tensor([[0]])]
    return list(torch.randn(5, model.schema.width))


@pytest.mark.parametrize("name", MODELS)
def test_the_short_way_says_what_the_model_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS[name]()
    short = Online(model)
    assert short._stepper is not None
    monkeypatch.setattr(place, "_stepper", lambda model: None)
    long = Online(model)
    assert long._stepper is None and long.state is None and short.state is None
    for _ in range(2):
        for x in given(model):
            torch.testing.assert_close(short.step(x), long.step(x), rtol=0, atol=1e-6)
            torch.testing.assert_close(short.state, long.state, rtol=0, atol=1e-6)
        short.reset()
        long.reset()


def test_new_weights_are_seen_at_a_reset() -> None:
    model = MODELS["text"]()
    online = Online(model)
    before = online.step("a").clone()
    with torch.no_grad():
        model.recurrent.weight_ih_l0.mul_(5)
        model.recurrent.bias_ih_l0.add_(2)
    online.reset()
    assert not torch.allclose(online.step("a"), before)
    torch.testing.assert_close(Online(model).step("a"), (online.reset(), online.step("a"))[1])


def test_what_was_said_stays_as_it_was() -> None:
    online = Online(MODELS["text"]())
    first = online.step("a")
    kept = first.clone()
    online.step("b")
    assert torch.equal(first, kept) and float(first.sum()) == pytest.approx(1)


def test_a_hook_is_still_called() -> None:
    model, seen = MODELS["text"](), []
    model.recurrent.register_forward_hook(lambda *args: seen.append(1))
    Online(model).step("a")
    assert seen == [1]


def test_words_and_bytes() -> None:
    words = build(LMConfig("t", symbols="words", hidden=5), TextSchema(Vocabulary("words", words=("<unk>", "cat"))))
    torch.testing.assert_close(Online(words).step("dog"), Online(words).step(0))
    assert not torch.allclose(Online(words).step("cat"), Online(words).step(0))
    data = build(LMConfig("t", symbols="bytes", hidden=5), TextSchema(Vocabulary("bytes")))
    torch.testing.assert_close(Online(data).step("a"), Online(data).step(97))
    for wrong in ("ä", -1, 256, 1.0, [1, 2], None, "ab", [[1], [2, 3]]):
        with pytest.raises(DataError, match="a step is one symbol"):
            Online(data).step(wrong)
