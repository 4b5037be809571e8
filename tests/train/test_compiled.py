"""--compile: the same model, no graph breaks, seen by the watch and the guard; without a compiler one clear line."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.runs import numbers
from tests.train.test_guarded_run import bad_at

from throughtime.errors import ConfigError
from throughtime.train import LMConfig, load, resume, train
from throughtime.train.guarding import sentence

Tiny = Callable[..., LMConfig]
compiler = torch.compile
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def compile_by(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    """All of torch.compile but its last step, which takes long and needs a C++ compiler."""
    monkeypatch.setattr(torch, "compile", functools.partial(compiler, backend=backend))


def short(tiny: Tiny, **options: Any) -> LMConfig:
    return tiny(**{"steps": 6, "valid_every": 6, "lr": 0.01, "watch_budget": 0.0, **options})


def test_a_compiled_run_is_one_graph_watched_and_guarded(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad_at(monkeypatch, [4])
    plain = train(short(tiny), tmp_path / "plain", on_incident=lambda i: None)
    compile_by(monkeypatch, "eager")
    alone = train(short(tiny, compile=True), tmp_path / "alone", on_incident=lambda i: None)
    assert numbers(alone) == numbers(plain)  # this backend changes no rounding
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] >= 2 and not counters["graph_break"]
    watched = train(short(tiny, compile=True, watch_budget=1e300), tmp_path / "watched", on_incident=lambda i: None)
    assert numbers(watched) == numbers(alone)
    assert [r.step for r in watched.watched] == [1, 2, 3, 4, 5, 5, 6]
    first = watched.watched[0].recurrences[0]
    assert first.name == "recurrent" and first.horizon is not None and watched.watched[0].updates
    assert [sentence(i) for i in alone.incidents] == [sentence(i) for i in plain.incidents]  # looked into, not only at
    assert "forward" not in vars(load(tmp_path / "alone"))
    assert resume(tmp_path / "alone", steps=7, compile=False).history[-1].step == 7


def test_a_compiler_that_fails_is_told_in_one_line(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here\nand much more")

    compile_by(monkeypatch, backend)
    with pytest.raises(ConfigError, match=r"torch\.compile cannot compile this model here .* g\+\+") as caught:
        train(short(tiny, compile=True), tmp_path / "run")
    assert "no compiler here" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
def test_what_the_real_compiler_makes_is_the_same_model(tiny: Tiny, tmp_path: Path) -> None:
    config = short(tiny, steps=4, valid_fraction=0.0)
    plain = train(config, tmp_path / "plain")
    fast = train(short(tiny, steps=4, valid_fraction=0.0, compile=True), tmp_path / "fast")
    assert [r.loss for r in fast.history] == pytest.approx([r.loss for r in plain.history], rel=1e-5)
    assert [r.grad_norm for r in fast.history] == pytest.approx([r.grad_norm for r in plain.history], rel=1e-4)
    assert not torch._dynamo.utils.counters["graph_break"]
