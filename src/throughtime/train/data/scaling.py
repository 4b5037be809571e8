"""Normalisation: the mean and the standard deviation of columns, of the training part only, kept with the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from throughtime.errors import DataError


@dataclass(frozen=True)
class Scaling:
    """For each of D columns: its name, its mean, and its standard deviation (1 where the column never changes)."""

    columns: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def fit(cls, columns: Sequence[str], values: Tensor) -> Scaling:
        """That of values [N, D], which must be of the training part and of nothing else."""
        mean, deviation = values.double().mean(0), values.double().std(0, unbiased=False)
        constant = deviation <= 1e-12 * mean.abs()
        deviation = torch.where(constant, torch.ones_like(deviation), deviation)
        if not bool((mean.isfinite() & deviation.isfinite()).all()):
            raise DataError(f"the numbers in {', '.join(map(repr, columns))} are too large to be normalised")
        return cls(tuple(columns), tuple(mean.tolist()), tuple(deviation.tolist()))

    def __call__(self, values: Tensor) -> Tensor:
        """(values - mean) / deviation, [..., D], in float32."""
        mean = torch.tensor(self.mean, dtype=torch.float64)
        return ((values.double() - mean) / torch.tensor(self.deviation, dtype=torch.float64)).float()
