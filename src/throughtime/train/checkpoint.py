"""Checkpoints: written whole or not at all, read without running code, checked before they are used."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from throughtime.errors import CheckpointError
from throughtime.files import remove_tree, to_json, write_directory, writing
from throughtime.train.rundir import FORMAT

WEIGHTS, RESUME, META = "model.safetensors", "resume.pt", "meta.json"
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Best:
    """The best validation so far: its loss and its step; None and 0 before the first."""

    loss: float | None = None
    step: int = 0


def step_name(step: int) -> str:
    """The name of the checkpoint of a step: step-000200."""
    return f"step-{step:06d}"


def steps_in(directory: Path) -> list[int]:
    """The steps that there are checkpoints of, in order."""
    try:
        matches = [_NAME.fullmatch(place.name) for place in directory.iterdir()]
    except OSError:
        return []
    return sorted(int(match[1]) for match in matches if match)


def save(
    directory: Path, step: int, digest: str, weights: dict[str, Tensor], resume: dict[str, Any], best: Best
) -> None:
    """Write the checkpoint of a step in one rename, or no part of it; raises `WriteError`."""
    buffer = io.BytesIO()
    torch.save(resume, buffer)
    files = {
        WEIGHTS: safetensors.torch.save({k: v.detach().cpu().contiguous().clone() for k, v in weights.items()}),
        RESUME: buffer.getvalue(),
    }
    meta = {
        "format": FORMAT,
        "step": step,
        "config": digest,
        "best_loss": best.loss,
        "best_step": best.step,
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    write_directory(directory / step_name(step), {**files, META: to_json(meta)})


def prune(directory: Path, keep: int, also: Iterable[int] = ()) -> None:
    """Remove all checkpoints but the last `keep`, the best that each of these knows of, and those of `also`, steps."""
    steps = steps_in(directory)
    kept = {*steps[-keep:], *also}
    for step in steps[-keep:]:
        try:
            meta = read_meta(directory / step_name(step))
        except CheckpointError:
            return  # one that cannot be read may still name the best: remove nothing
        if meta["best_loss"] is not None:
            kept.add(meta["best_step"])
    _remove(directory, set(steps) - kept)


def remove_after(directory: Path, step: int) -> None:
    """Remove the checkpoints of later steps: the run goes on from `step` and will come to them again."""
    _remove(directory, [s for s in steps_in(directory) if s > step])


def _remove(directory: Path, steps: Iterable[int]) -> None:
    with writing(directory):
        for step in steps:
            remove_tree(directory / step_name(step))


def find(directory: Path, which: str) -> Path:
    """The checkpoint named `last`, `best` or step-000200; `best` is the last where nothing was validated.

    Raises `CheckpointError` if it is not there.
    """
    steps = steps_in(directory)
    if not steps:
        raise CheckpointError(f"there is no checkpoint in {directory}; start the run again")
    names = [step_name(step) for step in steps]
    if which == "best":
        best = read_meta(directory / names[-1])
        which = step_name(best["best_step"]) if best["best_loss"] is not None else "last"
    if which == "last":
        which = names[-1]
    if which not in names:
        raise CheckpointError(f"there is no checkpoint {which!r} in {directory}; there are {', '.join(names)}")
    return directory / which


def read_meta(path: Path) -> dict[str, Any]:
    """What a checkpoint says about itself; raises `CheckpointError` if that is missing or damaged."""
    try:
        meta = json.loads(_read(path, META))
        if not isinstance(meta, dict) or "format" not in meta:
            raise ValueError("no format")
    except (ValueError, RecursionError):
        raise bad(path, f"is damaged: {META} cannot be read") from None
    if meta["format"] != FORMAT:
        raise bad(
            path,
            f"has format {meta['format']!r}, and this version of throughtime reads format {FORMAT}",
            "use that version",
        )
    whole = isinstance(meta.get("sha256"), dict) and {WEIGHTS, RESUME} <= set(meta["sha256"])
    loss = meta.get("best_loss", "missing")
    if not (
        whole
        and isinstance(meta.get("config"), str)
        and isinstance(meta.get("best_step"), int)
        and (loss is None or isinstance(loss, float))
        and _NAME.fullmatch(path.name)
        and meta.get("step") == int(path.name.removeprefix("step-"))
    ):
        raise bad(path, f"is damaged: {META} is not complete")
    return meta


def read_weights(path: Path, model: torch.nn.Module, digest: str) -> None:
    """Put the weights of a checkpoint into `model`; raises `CheckpointError` if they are damaged or unfit."""
    content = _checked(path, WEIGHTS, digest)
    try:
        weights = safetensors.torch.load(content)
    except Exception as error:  # whatever the reader makes of bytes that are no weights
        raise bad(path, f"is damaged: {WEIGHTS} cannot be read ({_line(error)})") from None
    wanted = model.state_dict()
    for name in sorted(set(wanted) | set(weights)):
        if name not in weights:
            raise bad(path, f"does not fit the model: {WEIGHTS} has no tensor {name}")
        if name not in wanted:
            raise bad(path, f"does not fit the model: {WEIGHTS} has a tensor {name} that the model does not know")
        if weights[name].shape != wanted[name].shape:
            came, need = list(weights[name].shape), list(wanted[name].shape)
            raise bad(path, f"does not fit the model: {name} is {came} in {WEIGHTS} and {need} in the model")
    model.load_state_dict(weights)


def read_resume(path: Path, digest: str) -> dict[str, Any]:
    """What continuing needs besides the weights; only plain tensors, numbers and containers are accepted."""
    content = _checked(path, RESUME, digest)
    try:
        resume = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged archive raises many kinds, a foreign object UnpicklingError
        raise bad(path, f"is damaged: {RESUME} cannot be read ({_line(error)})") from None
    if not isinstance(resume, dict):
        raise bad(path, f"is damaged: {RESUME} is not what a run saves")
    return resume


def bad(path: Path, what: str, way_out: str = "") -> CheckpointError:
    """The error for a checkpoint that cannot be used; it names another one that might be."""
    match = _NAME.fullmatch(path.name)
    own = int(match[1]) if match else 0
    others = [step for step in steps_in(path.parent) if step != own]
    earlier = [step for step in others if step < own]
    if not way_out and others:
        other = step_name((earlier or others)[-1])
        way_out = f"use the {'previous' if earlier else 'later'} one with --checkpoint {other}"
    return CheckpointError(f"the checkpoint {path} {what}; {way_out or 'there is no other, so start the run again'}")


def _checked(path: Path, name: str, digest: str) -> bytes:
    meta, content = read_meta(path), _read(path, name)
    if meta["config"] != digest:
        raise bad(path, "belongs to another config than the run's config.json", "bring back the right config.json")
    if hashlib.sha256(content).hexdigest() != meta["sha256"][name]:
        raise bad(path, f"is damaged: {name} is not what was written (its sha256 differs)")
    return content


def _read(path: Path, name: str) -> bytes:
    try:
        return (path / name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise bad(path, f"is not complete: {name} is missing") from None
    except OSError as error:
        raise bad(path, f"cannot be read: {name}: {error.strerror or error}") from None


def _line(error: Exception) -> str:
    """The first line of a message, for some of torch's run over many."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
