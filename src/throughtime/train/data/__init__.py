"""Data: from files, or from a generator, to batches of sequences."""

from __future__ import annotations

from throughtime.train.data.batch import Batch, Source
from throughtime.train.data.prepare import prepare
from throughtime.train.data.prepared import Prepared
from throughtime.train.data.schema import Schema
from throughtime.train.data.sequences import Sequences
from throughtime.train.data.streams import Streams
from throughtime.train.data.text import TextData, read_text
from throughtime.train.data.vocabulary import Vocabulary

__all__ = [
    "Batch",
    "Prepared",
    "Schema",
    "Sequences",
    "Source",
    "Streams",
    "TextData",
    "Vocabulary",
    "prepare",
    "read_text",
]
