"""Piano rolls, and other sequences of many labels a step, from a numpy archive."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from throughtime.errors import DataError
from throughtime.train.data.batch import Source
from throughtime.train.data.prepared import Prepared
from throughtime.train.data.reading import read_whole
from throughtime.train.data.schema import NotesSchema
from throughtime.train.data.sequences import Sequences
from throughtime.train.kinds import NotesConfig


def read_archive(path: Path) -> tuple[dict[str, list[Tensor]], str]:
    """The pieces of each part, uint8 [T_n, notes] of 0 and 1, and the file's fingerprint; raises `DataError`."""
    raw = read_whole(path, "numpy .npz")
    try:
        with np.load(io.BytesIO(raw), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # a damaged archive raises many kinds; one with objects in it ValueError
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DataError(f"{path} is no numpy archive that can be read ({why}); save it with numpy.savez") from None
    parts = {part: _pieces(path, arrays, part) for part in ("train", "valid", "test")}
    found = {part: pieces for part, pieces in parts.items() if pieces}
    if "train" not in found:
        raise DataError(f"{path} has no pieces to train on; its arrays are {', '.join(sorted(arrays)) or 'none'}")
    widths = {len(piece[0]) for pieces in found.values() for piece in pieces}
    if len(widths) > 1:
        raise DataError(f"{path}: its parts have {' and '.join(map(str, sorted(widths)))} notes; they must agree")
    return found, hashlib.sha256(raw).hexdigest()


def _pieces(path: Path, arrays: Mapping[str, np.ndarray], part: str) -> list[Tensor]:
    """The pieces of a part with at least two steps: the first step of a piece is given, those behind are predicted."""
    name = part if part in arrays else f"{part}_bits"
    if name not in arrays:
        return []
    steps, lengths = arrays[name], arrays.get(f"{part}_len")
    if lengths is None:
        raise DataError(f"{path} has {name} but not {part}_len, the length of each piece; add it")
    packed = name.endswith("_bits")
    if steps.ndim != 2 or not steps.size or (steps.dtype != np.uint8 if packed else steps.dtype.kind not in "buif"):
        raise DataError(
            f"{path}: {name} must be [steps, {'notes / 8] of uint8' if packed else 'notes]'}; it is {steps.dtype} "
            f"{list(steps.shape)}"
        )
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or (lengths < 0).any() or lengths.sum() != len(steps):
        raise DataError(f"{path}: {part}_len must be whole numbers that add up to the {len(steps)} steps of {name}")
    if packed:
        steps = np.unpackbits(steps, axis=1)
    elif not np.isin(steps, (0, 1)).all():
        raise DataError(f"{path}: {name} must hold 0 and 1 only, for each step and note whether it sounds")
    pieces = torch.from_numpy(steps.astype(np.uint8)).split(lengths.tolist())
    return [piece for piece in pieces if len(piece) > 1]


def prepare(config: NotesConfig, schema: NotesSchema | None) -> Prepared:
    """The data of a run; a part that the archive does not have is taken from its training part, by the seed."""
    path = Path(config.archive)
    parts, sha256 = read_archive(path)
    order = torch.randperm(len(parts["train"]), generator=torch.Generator().manual_seed(config.seed)).tolist()
    pieces = parts["train"]
    for part, fraction in (("test", config.test_fraction), ("valid", config.valid_fraction)):
        if part not in parts and fraction:
            count = round(len(pieces) * fraction)
            if not 0 < count < len(order):
                raise DataError(
                    f"{path} has {len(order)} pieces, which leaves none for the part {part!r} or none to train on; "
                    f"change --{part}-fraction"
                )
            parts[part] = [pieces[n] for n in order[-count:]]
            order = order[:-count]
    parts["train"] = [pieces[n] for n in sorted(order)]
    if config.valid_fraction == 0:
        parts.pop("valid", None)
    sources = {part: _source(config, p, config.seed if part == "train" else None) for part, p in parts.items()}
    schema = schema or NotesSchema(pieces[0].shape[1])
    return Prepared(schema, sources["train"], sources.get("valid"), sources.get("test"), sha256)


def whole(path: Path, schema: NotesSchema, config: NotesConfig, part: str = "test") -> Source:
    """A part of another archive (its training part where it has no such one), to evaluate a model on."""
    parts, _ = read_archive(path)
    pieces = parts.get(part, parts["train"])
    if pieces[0].shape[1] != schema.notes:
        raise DataError(f"{path} has {pieces[0].shape[1]} notes, and the model knows {schema.notes}")
    return _source(config, pieces, None)


def _source(config: NotesConfig, pieces: list[Tensor], seed: int | None) -> Sequences:
    """All steps but the last go in, all but the first are to be predicted."""
    inputs = [piece[:-1].float() for piece in pieces]
    targets = [piece[1:].float() for piece in pieces]
    return Sequences(inputs, targets, config.batch, config.window, seed=seed)
