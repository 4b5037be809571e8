"""Pages and a reader of pages for the tests of the report."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import pytest

from throughtime.flow import Horizon
from throughtime.report import DependenceView, ModelView, Page, SampleView, render

HOSTILE = (
    "</script><script>alert(1)</script><!-- {{data}} \"q\" 'a' & "
    "\u2028\u2029\x00\x1b\u202e\ud800\uffff \u05d0\tx\r\ny\rz"
)


def decay(rate: float, steps: int) -> tuple[list[list[float]], list[float]]:
    """A (t,k) map and a profile that fall by `rate` each step."""
    rows = [[0.3 * rate ** (t - k) if k <= t else 0.0 for k in range(steps)] for t in range(steps)]
    return rows, [rate**lag for lag in range(steps)]


@pytest.fixture
def model() -> Any:
    """A maker of models; keywords replace its parts."""

    def make(name: str = "RNN", rate: float = 0.6, steps: int = 24, **parts: Any) -> ModelView:
        rows, profile = decay(rate, steps)
        return ModelView(
            **{
                "name": name,
                "cell": "rnn",
                "equations": "h_t = tanh(z_t)",
                "profile": {"h": profile},
                "maps": {"h": rows},
                "history": [(s, 6 * 0.99**s, 6 * 0.99**s + 0.1 if s % 10 == 0 else None) for s in range(1, 51)],
                "horizon": {"h": Horizon(9, False)},
                "half_life": {"h": math.log(0.5) / math.log(rate)},
                "sample": SampleView("To be", " or not"),
                **parts,
            }
        )

    return make


@pytest.fixture
def page(model: Any) -> Page:
    """A page of two models with every part."""
    lags = range(1, 24)
    return Page(
        title="Two networks",
        verdict="The second one reaches farther.",
        models=[model(), model("LSTM", 0.9)],
        window=24,
        data_horizon=14,
        dependence=DependenceView(lags, [0.5 / d for d in lags], [0.01 for _ in lags]),
        settings={"seed": 7, "seconds": 12.25},
        floors={"uniform guess": 6.0},
    )


@dataclass
class Read:
    """A page taken apart by a parser that knows nothing of how it was made."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: str = ""
    scripts: list[str] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)
    data: Any = None

    def named(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of each `tag` in the page."""
        return [attributes for name, attributes in self.tags if name == tag]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.read = Read()
        self.open: tuple[str, dict[str, str | None]] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.read.tags.append((tag, dict(attrs)))
        self.open = (tag, dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        self.open = None

    def handle_data(self, data: str) -> None:
        tag, attributes = self.open or ("", {})
        if tag == "script" and attributes.get("type") == "application/json":
            self.read.data = json.loads(data)
        elif tag == "script":
            self.read.scripts.append(data)
        elif tag == "style":
            self.read.styles.append(data)
        else:
            self.read.text += data


@pytest.fixture
def read() -> Any:
    """A page rendered and taken apart."""

    def run(page: Page) -> Read:
        reader = _Reader()
        reader.feed(render(page))
        reader.close()
        return reader.read

    return run
