"""What comes next in a series: the density of each step ahead, from a trained run."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from throughtime.errors import ConfigError, DataError, NonFiniteError
from throughtime.train.data.panel import read_panel
from throughtime.train.data.schema import ForecastSchema
from throughtime.train.data.series import WARM_UP, Series, read_series
from throughtime.train.data.table import read_table
from throughtime.train.kinds import ForecastConfig
from throughtime.train.loop import load_from
from throughtime.train.mixture import GaussianMixture
from throughtime.train.model import SequenceModel
from throughtime.train.rundir import Run


@dataclass(frozen=True)
class Forecast:
    """The steps behind the last row of a table.

    density: [horizon], in the target's unit. quantiles: by their probabilities, [horizon] each.
    """

    target: str
    rows: int
    density: GaussianMixture
    quantiles: dict[float, list[float]]

    @property
    def mean(self) -> list[float]:
        """[horizon]: the mean of each step ahead."""
        return self.density.expectation().tolist()

    def csv(self) -> str:
        """A table with a row for each step ahead."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["ahead", "mean", *(f"q{p:g}" for p in self.quantiles)])
        columns = [self.mean, *self.quantiles.values()]
        writer.writerows([k, *(f"{v:.7g}" for v in values)] for k, values in enumerate(zip(*columns, strict=True), 1))
        return out.getvalue()


@dataclass(frozen=True)
class PanelForecast:
    """A forecast of each series of a table, by its name; column: the one that tells them apart."""

    column: str
    series: dict[str, Forecast]

    def csv(self) -> str:
        """A table with a row for each series and step ahead."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        for number, (name, found) in enumerate(self.series.items()):
            header, *rows = csv.reader(found.csv().splitlines())
            if not number:
                writer.writerow([self.column, *header])
            writer.writerows([name, *row] for row in rows)
        return out.getvalue()


def forecast(
    run_dir: str | Path,
    *,
    data: str | Path | None = None,
    quantiles: Sequence[float] = (0.1, 0.5, 0.9),
    checkpoint: str = "best",
) -> Forecast | PanelForecast:
    """Forecast the steps behind the last row of the run's table, or of another one with the same columns.

    The model reads the last steps of the table, 512 at most. Of a run with --series there is a forecast for each series
    of the table, those that it did not learn from too. Raises `ConfigError` for a run that does not forecast or a
    quantile that is none, `DataError` for a table without the columns, or too short.
    """
    run = Run.open(Path(run_dir))
    config, schema = run.config, run.schema
    if not isinstance(config, ForecastConfig) or not isinstance(schema, ForecastSchema):
        raise ConfigError(
            f"{run.path} is a run of the kind {config.kind!r}; train one that forecasts: `train forecast`"
        )
    model = load_from(run, checkpoint)
    table = read_table(Path(data if data is not None else config.table))
    if not config.series:
        return _behind(model, schema, read_series(table, schema), str(table.path), quantiles)
    found = read_panel(table, config, schema).series.items()
    where = f"{table.path}, series"
    each = {name: _behind(model, schema, series, f"{where} {name!r}", quantiles) for name, series in found}
    return PanelForecast(config.series, each)


def _behind(
    model: SequenceModel, schema: ForecastSchema, series: Series, where: str, quantiles: Sequence[float]
) -> Forecast:
    """The steps behind the last one of a series."""
    features = series.features[-WARM_UP:]
    if not len(features):
        raise DataError(f"{where} has no row behind its first season of {schema.season}; give a longer series")
    with torch.no_grad():
        outputs, _ = model(schema.inputs(features).unsqueeze(1))
    if not bool(outputs[-1].isfinite().all()):
        raise NonFiniteError("the model's output is not finite: its weights are broken; use another checkpoint")
    last = torch.tensor([len(series.y) - 1])
    density = in_unit(schema, outputs[-1, 0], series.base(last, schema.horizon)[0])
    return Forecast(schema.target, len(series.y), density, {float(p): density.quantile(p).tolist() for p in quantiles})


def in_unit(schema: ForecastSchema, outputs: torch.Tensor, base: torch.Tensor) -> GaussianMixture:
    """The densities [horizon] that outputs [size] stand for, in the target's unit; base: [horizon]."""
    offset, factor = (torch.tensor(v, dtype=torch.float64) for v in (schema.offset, schema.factor))
    return schema.head.distribution(outputs).to(torch.float64).moved(base + offset, factor)
