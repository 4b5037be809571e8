"""The data of a run, made ready."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from throughtime.train.data.batch import Source
from throughtime.train.data.schema import Schema


@dataclass(frozen=True)
class Prepared:
    """What a run reads: the meaning of its numbers, its parts, the fingerprint of where they came from.

    references: for the parts "valid" and "test", losses of simple rivals by name, to compare with.
    """

    schema: Schema
    train: Source
    valid: Source | None
    test: Source | None
    sha256: str
    references: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
