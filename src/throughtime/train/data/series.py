"""A series to forecast: its features, its targets for each step ahead, the split in time, what naive forecasts lose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from throughtime.errors import DataError
from throughtime.train.data.prepared import Prepared
from throughtime.train.data.scaling import Scaling
from throughtime.train.data.schema import ForecastSchema
from throughtime.train.data.streams import Streams
from throughtime.train.data.table import Table, read_table
from throughtime.train.kinds import ForecastConfig

WARM_UP = 512
"""Steps before a held-out part, at most, that bring the state to where it is; they are not scored."""


@dataclass(frozen=True)
class Series:
    """A target y [N] and features [N - first, D] of the steps from `first` on, not yet normalised."""

    y: Tensor
    features: Tensor
    columns: tuple[str, ...]
    first: int

    @classmethod
    def of(cls, table: Table, target: str, columns: list[str], season: int) -> Series:
        """The series that a table is; see `of_values`."""
        return cls.of_values(str(table.path), table.numbers(columns), target, columns, season)

    @classmethod
    def of_values(cls, where: str, values: Tensor, target: str, columns: list[str], season: int) -> Series:
        """With a season s, the target's own feature is y_t - y_{t-s}, from step s on; values: [N, D], of `columns`."""
        y = values[:, columns.index(target)].clone()
        if len(y) <= season:
            raise DataError(f"{where} has {len(y)} rows, no more than a season of {season}; give a longer series")
        features = values[season:].clone()
        if season:
            features[:, columns.index(target)] = y[season:] - y[:-season]
        return cls(y, features, tuple(columns), season)

    def base(self, origins: Tensor, horizon: int) -> Tensor:
        """[n, horizon]: for each origin and lead the last known value a whole number of seasons before; else 0."""
        season = self.first
        if not season:
            return torch.zeros(len(origins), horizon, dtype=self.y.dtype)
        return seasonal_naive(self.y, origins, horizon, season)


def seasonal_naive(y: Tensor, origins: Tensor, horizon: int, season: int) -> Tensor:
    """[n, horizon]: y at t + k - season * ceil(k / season), the forecast for t + k made at t; season 1: y_t."""
    k = torch.arange(1, horizon + 1)
    back = k - season * -(-k // season)
    return y[origins.unsqueeze(1) + back]


def ahead(y: Tensor, origins: Tensor, horizon: int) -> Tensor:
    """[n, horizon]: y at t + 1 ... t + horizon."""
    return y[origins.unsqueeze(1) + torch.arange(1, horizon + 1)]


def read_series(table: Table, schema: ForecastSchema) -> Series:
    """The series of a trained model in a table; raises `DataError` where its columns are not there."""
    return Series.of(table, schema.target, list(schema.inputs.columns), schema.season)


def prepare(config: ForecastConfig, schema: ForecastSchema | None) -> Prepared:
    """The data of a run; raises `DataError` that says what is missing."""
    table = read_table(Path(config.table))
    columns = table.chosen(config.inputs)
    table.numbers([config.target])
    if config.target not in columns:
        columns = [config.target, *columns]
    series = Series.of(table, config.target, columns, config.season)
    n = len(series.y)
    test = n - round(n * config.test_fraction)
    split = test - round(n * config.valid_fraction)
    h = config.horizon
    origins = torch.arange(series.first, max(split - h, series.first))
    need = config.batch * config.window
    if len(origins) < need:
        raise DataError(
            f"{table.path} is too short: {len(origins)} steps to train on have {h} known steps ahead, and one window "
            f"of {config.window} steps for each of {config.batch} streams needs {need}; lower --batch or --window"
        )
    deviation = ahead(series.y, origins, h) - series.base(origins, h)
    if schema is None:
        inputs = Scaling.fit(columns, series.features[: split - series.first])
        targets = Scaling.fit([config.target] * h, deviation)
        schema = ForecastSchema(
            inputs, config.target, config.season, config.components, targets.mean, targets.deviation
        )
    train = _streams(series, schema, int(origins[0]), split, config.batch, config.window)
    parts = {"valid": (split, test, config.valid_fraction), "test": (test, n, config.test_fraction)}
    held = {name: _held_out(table, series, schema, config, name, *part[:2]) for name, part in parts.items() if part[2]}
    references = {
        name: naive_errors(series.y, begin, end, h, config.season) for name, (begin, end, part) in parts.items() if part
    }
    return Prepared(schema, train, held.get("valid"), held.get("test"), table.sha256, references)


def whole(table: Table, schema: ForecastSchema, config: ForecastConfig) -> tuple[Streams, dict[str, float]]:
    """A whole other table to evaluate a model on, and what naive forecasts lose there."""
    series, h = read_series(table, schema), schema.horizon
    begin = series.first + 1
    if len(series.y) < begin + h:
        raise DataError(f"{table.path} is too short: {len(series.y)} rows, and {begin + h} are needed")
    streams = _streams(series, schema, series.first, len(series.y), 1, config.window, scored_from=series.first)
    return streams, naive_errors(series.y, begin, len(series.y), h, schema.season)


def naive_errors(y: Tensor, begin: int, end: int, horizon: int, season: int) -> dict[str, float]:
    """Mean absolute error of taking the last value, and that of a season ago, for the steps from `begin` to `end`."""
    origins = torch.arange(begin - 1, end - horizon)
    wanted = ahead(y, origins, horizon)
    errors = {"mae of the last value": float((wanted - y[origins].unsqueeze(1)).abs().mean())}
    if season > 1:
        naive = seasonal_naive(y, origins, horizon, season)
        errors["mae of the last season"] = float((wanted - naive).abs().mean())
    return errors


def _held_out(
    table: Table, series: Series, schema: ForecastSchema, config: ForecastConfig, part: str, begin: int, end: int
) -> Streams:
    if end - begin < schema.horizon:
        raise DataError(
            f"{table.path} is too short: the part that --{part}-fraction keeps has {end - begin} steps, fewer than the "
            f"{schema.horizon} to forecast; raise --{part}-fraction, or lower --horizon"
        )
    first = max(series.first, begin - 1 - WARM_UP)
    return _streams(series, schema, first, end, 1, config.window, scored_from=begin - 1)


def _streams(
    series: Series, schema: ForecastSchema, first: int, end: int, batch: int, window: int, scored_from: int = 0
) -> Streams:
    """Streams of the origins from `first` on whose steps ahead all lie before `end`."""
    inputs, targets, counts = origins_of(series, schema, first, end, scored_from)
    return Streams(inputs, targets, batch, window, counts if scored_from > first else None, tail=batch == 1)


def origins_of(
    series: Series, schema: ForecastSchema, first: int, end: int, scored_from: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs [n, D] and targets [n, horizon], normalised, of the origins from `first` on whose steps ahead all lie
    before `end`, and which of them [n] count: those from `scored_from` on."""
    origins, h = torch.arange(first, end - schema.horizon), schema.horizon
    inputs = schema.inputs(series.features[origins - series.first])
    deviation = ahead(series.y, origins, h) - series.base(origins, h)
    targets = (deviation - torch.tensor(schema.offset, dtype=torch.float64)) / torch.tensor(
        schema.factor, dtype=torch.float64
    )
    return inputs, targets.float(), origins >= scored_from
