"""Plain data on disk: results written to one file, JSON for their structure and safetensors for their tensors."""

from __future__ import annotations

import dataclasses
import hashlib
import html
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor

from throughtime.errors import CheckpointError
from throughtime.files import write_file, writing

FORMAT = 1
"""Version of the files and dicts; another one is refused."""

_MARK = "!"  # the key that tells a typed object from a plain one
_DTYPES = {str(t).removeprefix("torch."): t for t in (torch.float64, torch.float32, torch.int64, torch.bool)}
_known: dict[str, type] = {}

T = TypeVar("T", bound="Plain")
C = TypeVar("C", bound=type)


def plain(cls: C) -> C:
    """Makes a dataclass or NamedTuple of ours one that may stand in a file. Only such classes are ever made again."""
    _known[cls.__name__] = cls
    return cls


class Plain:
    """What every result object can do: save itself, and be read again as it was.

    The file is one in the safetensors format, whose header carries the structure as JSON: any reader of safetensors
    opens it, and nothing in it can execute code. It is written whole or not at all. Sequences come back as tuples.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        plain(cls)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes it to the file `path` in one rename, over one that is there; gives the path.

        Raises CheckpointError where it cannot be written; what was there before is then unharmed.
        """
        return save(self, path)

    @classmethod
    def load(cls: type[T], path: str | os.PathLike[str]) -> T:
        """Reads what `save` wrote. Raises CheckpointError for a file that is missing, damaged, foreign, of another
        version, or that holds something else."""
        found = load(path)
        if not isinstance(found, cls):
            raise CheckpointError(f"{path} holds a {type(found).__name__}, and not a {cls.__name__}")
        return found

    def _repr_html_(self) -> str:
        """For notebooks: what print shows, as HTML."""
        return f'<pre style="line-height:1.25">{html.escape(str(self))}</pre>'

    def to_dict(self) -> dict[str, Any]:
        """Itself as what json.dumps takes, tensors as lists: one line of a log, say. `from_dict` is the way back."""
        return {"throughtime": FORMAT, **_encode(self, None)}

    @classmethod
    def from_dict(cls: type[T], data: Mapping[str, Any]) -> T:
        """The object that `to_dict` gave the data of. Raises CheckpointError for anything else."""
        if not isinstance(data, Mapping) or data.get("throughtime") != FORMAT:
            came = data.get("throughtime") if isinstance(data, Mapping) else type(data).__name__
            raise CheckpointError(f"expected what to_dict gives, format {FORMAT}; came {came!r}")
        found = _decoded({k: v for k, v in data.items() if k != "throughtime"}, None, "the data")
        if not isinstance(found, cls):
            raise CheckpointError(f"the data hold a {type(found).__name__}, and not a {cls.__name__}")
        return found


def save(value: Any, path: str | os.PathLike[str]) -> Path:
    """Writes a result object, or a tuple or a dict of such, to one file; see `Plain.save`."""
    place = Path(path)
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_encode(value, tensors), separators=(",", ":"))
    meta = {"throughtime": str(FORMAT), "structure": structure, "sha256": _digest(structure, tensors)}
    with writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
    write_file(place, safetensors.torch.save(tensors, meta))
    return place


def load(path: str | os.PathLike[str]) -> Any:
    """Reads what `save` wrote; raises CheckpointError, see `Plain.load`."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    try:
        size = int.from_bytes(content[:8], "little")
        meta = json.loads(content[8 : 8 + size])["__metadata__"]
        version, structure, digest = meta["throughtime"], meta["structure"], meta["sha256"]
    except (ValueError, KeyError, TypeError, MemoryError, RecursionError):
        raise CheckpointError(f"{path} is no file of saved results, or it is damaged at its beginning") from None
    if version != str(FORMAT):
        raise CheckpointError(
            f"{path} has format {version!r}, and this version of throughtime reads format {FORMAT}; use the version "
            "that wrote it"
        )
    try:
        tensors = safetensors.torch.load(content)
    except Exception as error:  # safetensors has several of its own
        raise CheckpointError(f"{path} is damaged ({' '.join(str(error).split())}); restore it from a copy") from None
    if not isinstance(structure, str) or _digest(structure, tensors) != digest:
        raise CheckpointError(f"{path} is damaged (its checksum is another one); restore it from a copy")
    return _decoded(json.loads(structure), tensors, str(path))


def _digest(structure: str, tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256(structure.encode())
    for name in sorted(tensors):
        found.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _encode(value: Any, tensors: dict[str, Tensor] | None) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_MARK: "float", "v": repr(float(value))}
    if isinstance(value, Tensor):
        return _encode_tensor(value.detach().cpu(), tensors)
    cls = type(value)
    if _known.get(cls.__name__) is cls:
        if dataclasses.is_dataclass(value):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        else:
            fields = value._asdict()
        return {_MARK: cls.__name__, **{k: _encode(v, tensors) for k, v in fields.items()}}
    if isinstance(value, tuple | list):
        return [_encode(v, tensors) for v in value]
    if isinstance(value, Mapping):
        if any(not isinstance(k, str) or k == _MARK for k in value):
            raise CheckpointError(f"only names can be keys of what is saved; came {list(value)[:5]}")
        return {k: _encode(v, tensors) for k, v in value.items()}
    raise CheckpointError(f"a {cls.__name__} is no plain data and cannot be saved")


def _encode_tensor(v: Tensor, tensors: dict[str, Tensor] | None) -> dict[str, Any]:
    if tensors is not None:
        name = f"t{len(tensors)}"
        tensors[name] = v.contiguous().clone()
        return {_MARK: "tensor", "v": name}
    dtype = str(v.dtype).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise CheckpointError(f"tensors of {dtype} cannot be written as numbers; the types are {', '.join(_DTYPES)}")
    numbers = [_encode(x, None) for x in v.flatten().tolist()]
    return {_MARK: "tensor", "dtype": dtype, "shape": list(v.shape), "v": numbers}


def _decoded(value: Any, tensors: Mapping[str, Tensor] | None, what: str) -> Any:
    try:
        return _decode(value, tensors)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError) as error:
        raise CheckpointError(
            f"{what} does not fit this version of throughtime, or is damaged ({' '.join(str(error).split())})"
        ) from None


def _decode(value: Any, tensors: Mapping[str, Tensor] | None) -> Any:
    if isinstance(value, list):
        return tuple(_decode(v, tensors) for v in value)
    if not isinstance(value, dict):
        return value
    if _MARK not in value:
        return {k: _decode(v, tensors) for k, v in value.items()}
    kind = value[_MARK]
    if kind == "float":
        return float(value["v"])
    if kind == "tensor":
        if tensors is not None:
            return tensors[value["v"]]
        numbers = [_decode(v, None) for v in value["v"]]
        return torch.tensor(numbers, dtype=_DTYPES[value["dtype"]]).view(value["shape"])
    if kind not in _known:
        raise KeyError(f"unknown kind {kind!r}")
    return _known[kind](**{k: _decode(v, tensors) for k, v in value.items() if k != _MARK})
