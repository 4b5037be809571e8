"""The parts of a page that are real HTML and need no script: numbers, samples, settings, equations."""

from __future__ import annotations

import math

from throughtime.flow import Horizon
from throughtime.report.text import escape, visible_html
from throughtime.report.view import ModelView, Page, TableView


def accent(index: int) -> str:
    """The class that gives model `index` its colour."""
    return f"model m{index % 6}"


def value(number: float | None, digits: int = 3) -> str:
    """A number for reading, 3 significant digits; — where there is none, NaN and ∞ by name."""
    if number is None:
        return "—"
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "∞" if number > 0 else "&minus;∞"
    if number != 0 and not 1e-3 <= abs(number) < 1e6:
        mantissa, exponent = f"{number:.{digits - 1}e}".split("e")
        return f"{mantissa} &times; 10<sup>{int(exponent)}</sup>".replace("-", "&minus;")
    if abs(number) >= 10 ** (digits - 1):
        return f"{number:.0f}".replace("-", "&minus;")
    if number == 0:
        return "0"
    return f"{number:.{digits - 1 - math.floor(math.log10(abs(number)))}f}".replace("-", "&minus;")


def steps(reach: Horizon | None) -> str:
    """A horizon in words: 24, ≥ 127, or —."""
    return "—" if reach is None else f"{'≥ ' if reach.at_least else ''}{reach.steps}"


def _half_life(model: ModelView) -> str:
    state = model.state if model.state is not None else next(iter(model.half_life), None)
    if state is None:
        return value(None)
    life = model.half_life.get(state)
    if life is not None and math.isinf(life) and state in model.profile:
        return f"&gt; {len(model.profile[state]) - 1}"
    return value(life)


def headline(page: Page) -> str:
    """The table of headline numbers: what the text asks for, and what each model reaches."""
    use = any(model.use is not None for model in page.models)
    loss = any(model.valid is not None for model in page.models)
    head = ["", "Gradient horizon", "Half-life", *(["In use"] if use else []), *(["Validation"] if loss else [])]
    per = escape(page.loss_unit)
    units = ["", "steps", "steps", *(["steps"] if use else []), *([per] if loss else [])]
    rows = []
    for index, model in enumerate(page.models):
        horizon = model.horizon.get(model.state) if model.state is not None else None
        state = f' <span class="state">{escape(model.state)}</span>' if model.state is not None else ""
        cells = [steps(horizon), _half_life(model), *([steps(model.use)] if use else [])]
        cells += [value(model.valid)] if loss else []
        name = f'<span class="name">{escape(model.name)}</span>{state}'
        rows.append(
            f'<tr class="{accent(index)}"><th scope="row">{name}</th>'
            f"{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        )
    asks = "the farthest lag with dependence beyond chance"
    if page.data_horizon is None:
        asks = "not measured" if page.dependence is None else "no dependence beyond chance at any lag measured"
    asked = (
        f'<tr class="text"><th scope="row">{escape(page.asks)} asks for</th><td>{steps(page.data_horizon)}</td>'
        f'<td colspan="{len(head) - 2}" class="aside">data horizon: {asks}</td></tr>'
    )
    columns = "".join(
        f'<th scope="col">{name}{f" <span>{unit}</span>" if unit else ""}</th>'
        for name, unit in zip(head, units, strict=True)
    )
    return (
        f'<table class="numbers{" wide" if use else ""}">'
        '<caption class="hidden">Headline numbers</caption>'
        f"<thead><tr>{columns}</tr></thead><tbody>{asked}{''.join(rows)}</tbody></table>"
    )


def loss_term(page: Page) -> str:
    """What the loss is measured in, for the list of terms."""
    unit = page.loss_unit
    if unit.startswith("bits"):
        means = (
            f"The mean of &minus;log<sub>2</sub> of the probability that the network gave to the {escape(page.unit)} "
            "that came next. Lower is better; one bit less means half as many equally likely choices."
        )
    elif unit.startswith("nats"):
        means = (
            "The mean of &minus;ln of the probability that the network gave to what was to be told. Lower is better; "
            "of a density, as a forecast is, it may be below 0. One nat is 1.44 bits."
        )
    else:
        means = "What the network is trained to make small; lower is better."
    return f"<dt>{escape(unit[:1].upper() + unit[1:])}</dt>\n  <dd>{means}</dd>"


def findings(page: Page) -> str:
    """What was found, by importance: the number, what it means, what to do."""
    items = "".join(
        f'<li class="{f.severity if f.severity in ("error", "warning") else "plain"}">'
        f'<p class="where"><b>{escape(f.severity)}</b> {escape(f.where)}</p><h3>{escape(f.what)}</h3>'
        f"<p>{escape(f.means)}</p>{f'<p><b>Do:</b> {escape(f.do)}</p>' if f.do else ''}</li>"
        for f in page.findings
    )
    return f'<section><h2>What was found</h2><ol class="findings">{items}</ol></section>' if items else ""


def tables(page: Page) -> str:
    """The tables that a page was given."""
    return "".join(_table(t) for t in page.tables)


def _table(t: TableView) -> str:
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in t.head)
    rows = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(v)}</td>" for v in row[1:])}</tr>'
        for row in t.rows
    )
    code = f'<pre class="equations" tabindex="0">{escape(t.code)}</pre>' if t.code else ""
    caption = f'<p class="caption">{escape(t.caption)}</p>' if t.caption else ""
    return (
        f"<section><h2>{escape(t.title)}</h2>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(t.title)}"><table class="plaintable">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{caption}{code}</section>"
    )


def samples(page: Page) -> str:
    """What each model wrote, side by side, as text and nothing else."""
    cards = [
        f'<article class="sample {accent(index)}"><h3>{escape(model.name)}</h3>'
        f'<pre tabindex="0" dir="auto" aria-label="Text written by {escape(model.name)}">'
        f'<span class="prompt">{visible_html(model.sample.prompt)}</span>'
        f"{visible_html(model.sample.text)}</pre></article>"
        for index, model in enumerate(page.models)
        if model.sample is not None
    ]
    if not cards:
        return ""
    return (
        f'<section><h2>What the networks write</h2><div class="samples">{"".join(cards)}</div>'
        '<p class="caption">The underlined beginning is the prompt; the rest is the network&rsquo;s '
        f"own, one {escape(page.unit)} at a time, fed back as its next input.</p></section>"
    )


def settings(page: Page) -> str:
    """The table of settings, as given; real numbers are shortened to 6 digits."""
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>'
        f"{escape(f'{item:.6g}' if isinstance(item, float) else item)}</td></tr>"
        for name, item in page.settings.items()
    )
    return f'<table class="settings"><caption>Settings</caption><tbody>{rows}</tbody></table>' if rows else ""


def equations(page: Page) -> str:
    """The equations of each model's cell, as plain text."""
    cells = "".join(
        f'<div class="{accent(index)}"><h3><span class="name">{escape(model.name)}</span> '
        f'<span class="state">{escape(model.cell)}</span></h3>'
        f'<pre class="equations" tabindex="0">{escape(model.equations)}</pre></div>'
        for index, model in enumerate(page.models)
        if model.equations
    )
    return f'<div class="cells">{cells}</div>' if cells else ""


def method(page: Page) -> str:
    """Settings and equations side by side, or nothing where neither was given."""
    both = settings(page) + equations(page)
    return f'<div class="columns">{both}</div>' if both else ""
