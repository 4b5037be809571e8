"""Several series in one table: windows never cross from one to the next, the split in time is each one's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from throughtime.errors import DataError
from throughtime.train.data.prepared import Prepared
from throughtime.train.data.scaling import Scaling
from throughtime.train.data.schema import ForecastSchema
from throughtime.train.data.sequences import Sequences
from throughtime.train.data.series import WARM_UP, Series, ahead, naive_errors, origins_of
from throughtime.train.data.table import Table, read_table
from throughtime.train.kinds import ForecastConfig


@dataclass(frozen=True)
class Panel:
    """The series of a table by name, in the order of their first rows."""

    table: Table
    series: dict[str, Series]

    @classmethod
    def of(cls, table: Table, config: ForecastConfig, columns: list[str]) -> Panel:
        """The rows of each series, in their order in the table; they need not stand together."""
        rows: dict[str, list[int]] = {}
        for row, cell in enumerate(table.text(config.series)):
            rows.setdefault(cell.strip(), []).append(row)
        if "" in rows:
            raise DataError(
                f"{table.path}: column {config.series!r} is empty in row {rows[''][0] + 1}; say which series it is of"
            )
        values = table.numbers(columns)
        found = {}
        for name, own in rows.items():
            where = f"{table.path}, series {name!r}"
            found[name] = Series.of_values(where, values[own], config.target, columns, config.season)
        return cls(table, found)

    def spans(self, config: ForecastConfig, part: str) -> dict[str, tuple[int, int]]:
        """For each series where a part begins and ends; "" is the whole of it."""
        found = {}
        for name, series in self.series.items():
            n = len(series.y)
            test = n - round(n * config.test_fraction)
            split = test - round(n * config.valid_fraction)
            whole = (series.first + 1, n)
            found[name] = {"train": (0, split), "valid": (split, test), "test": (test, n), "": whole}[part]
        return found

    def source(self, config: ForecastConfig, schema: ForecastSchema, part: str, names: Sequence[str] = ()) -> Sequences:
        """A part of all series, or of those named; of held-out ones the steps before them are read and not scored."""
        self.need(config, part, names)
        spans = self.spans(config, part)
        inputs, targets, scored = [], [], []
        for name in names or self.series:
            series, (begin, end) = self.series[name], spans[name]
            first = series.first if part == "train" else max(series.first, begin - 1 - WARM_UP)
            x, y, counts = origins_of(series, schema, first, end, series.first if part == "train" else begin - 1)
            inputs.append(x)
            targets.append(y)
            scored.append(counts)
        seed = config.seed if part == "train" else None
        return Sequences(inputs, targets, config.batch, config.window, seed=seed, scored=scored)

    def need(self, config: ForecastConfig, part: str, names: Sequence[str] = ()) -> None:
        """Raise `DataError` that names the first series whose part is too short."""
        spans, h = self.spans(config, part), config.horizon
        for name in names or self.series:
            series, (begin, end) = self.series[name], spans[name]
            if end - max(begin, series.first) < h + (part == "train"):
                what = {"train": "the part to learn from", "": "all"}.get(
                    part, f"the part that --{part}-fraction keeps"
                )
                raise DataError(
                    f"{self.table.path}, series {name!r} is too short: of its {len(series.y)} rows {what} has "
                    f"{end - begin}, too few to forecast {h} ahead; leave the series out, or change the fractions"
                )

    def references(self, config: ForecastConfig, part: str, names: Sequence[str] = ()) -> dict[str, float]:
        """What naive forecasts lose on a part, over all the steps that are forecast there."""
        spans, total, count = self.spans(config, part), dict[str, float](), 0
        for name in names or self.series:
            begin, end = spans[name]
            n = end - config.horizon - begin + 1
            errors = naive_errors(self.series[name].y, begin, end, config.horizon, config.season)
            total = {key: total.get(key, 0.0) + n * value for key, value in errors.items()}
            count += n
        return {key: value / count for key, value in total.items()}


def prepare(config: ForecastConfig, schema: ForecastSchema | None) -> Prepared:
    """The data of a run; raises `DataError` that says what is missing."""
    table = read_table(Path(config.table))
    table.text(config.series)
    columns = table.chosen(config.inputs, [config.series])
    table.numbers([config.target])
    if config.series in columns or config.series == config.target:
        raise DataError(f"{config.series!r} tells the series apart; it is no input and no target")
    if config.target not in columns:
        columns = [config.target, *columns]
    panel = Panel.of(table, config, columns)
    panel.need(config, "train")
    if schema is None:
        schema = _fit(panel, config, columns)
    train = panel.source(config, schema, "train")
    parts = {"valid": config.valid_fraction, "test": config.test_fraction}
    held = {name: panel.source(config, schema, name) for name, fraction in parts.items() if fraction}
    references = {name: panel.references(config, name) for name in held}
    return Prepared(schema, train, held.get("valid"), held.get("test"), table.sha256, references)


def read_panel(table: Table, config: ForecastConfig, schema: ForecastSchema) -> Panel:
    """The series of a trained model in a table, the run's own or another one."""
    return Panel.of(table, config, list(schema.inputs.columns))


def each(panel: Panel, config: ForecastConfig, schema: ForecastSchema, part: str) -> Iterator[tuple[str, Sequences]]:
    """A part of each series by itself."""
    for name in panel.series:
        yield name, panel.source(config, schema, part, [name])


def whole(table: Table, schema: ForecastSchema, config: ForecastConfig) -> tuple[Sequences, Mapping[str, float]]:
    """A whole other table to evaluate a model on, and what naive forecasts lose there."""
    panel = read_panel(table, config, schema)
    return panel.source(config, schema, ""), panel.references(config, "")


def _fit(panel: Panel, config: ForecastConfig, columns: list[str]) -> ForecastSchema:
    """The normalisation, of what all series have to learn from together."""
    spans, h = panel.spans(config, "train"), config.horizon
    features, deviations = [], []
    for name, series in panel.series.items():
        split = spans[name][1]
        origins = torch.arange(series.first, max(split - h, series.first))
        features.append(series.features[: max(split - series.first, 0)])
        deviations.append(ahead(series.y, origins, h) - series.base(origins, h))
    inputs = Scaling.fit(columns, torch.cat(features))
    targets = Scaling.fit([config.target] * h, torch.cat(deviations))
    return ForecastSchema(inputs, config.target, config.season, config.components, targets.mean, targets.deviation)
