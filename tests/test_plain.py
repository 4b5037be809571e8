"""Plain data on disk: what may stand in a file, what comes back, and every way in which a file can be wrong."""

from __future__ import annotations

import errno
import json
import math
import os
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from throughtime import plain
from throughtime.errors import CheckpointError
from throughtime.plain import Plain, load, save


@plain.plain
class Pair(NamedTuple):
    low: int
    high: float


@dataclass(frozen=True)
class Sample(Plain):
    name: str
    values: Tensor
    pair: Pair | None = None
    rest: tuple[object, ...] = ()
    named: dict[str, object] = field(default_factory=dict)
    worked_out: int = field(init=False, default=7)


def sample(**more: object) -> Sample:
    return Sample("n", torch.arange(6, dtype=torch.float64).view(2, 3), Pair(1, 0.5), **more)  # type: ignore[arg-type]


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def same(a: object, b: object) -> bool:
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(same(v, w) for v, w in zip(a, b, strict=True))
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


@settings(max_examples=60, deadline=None)
@given(values)
def test_whatever_is_plain_comes_back(value: object) -> None:
    data = json.loads(json.dumps(sample(rest=(value,)).to_dict(), allow_nan=False))
    assert same(Sample.from_dict(data).rest, (value,))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3)])
def test_tensors_come_back_to_the_last_bit(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: object) -> None:
    v = torch.randn(shape).to(dtype)
    if v.numel() and dtype.is_floating_point:
        v.view(-1)[0] = math.nan
    one = Sample("n", v)
    for again in (Sample.load(one.save(f"{tmp_path}/x")), Sample.from_dict(json.loads(json.dumps(one.to_dict())))):
        assert again.values.dtype == dtype and again.values.shape == v.shape
        torch.testing.assert_close(again.values, v, rtol=0, atol=0, equal_nan=True)


def test_views_of_one_memory_and_tensors_with_a_graph(tmp_path: object) -> None:
    w = torch.randn(4, 4, requires_grad=True)
    one = Sample("n", w.T, rest=(w[0], w[0]))
    again = Sample.load(one.save(f"{tmp_path}/x"))
    assert torch.equal(again.values, w.T) and torch.equal(again.rest[0], w[0]) and not again.values.requires_grad  # type: ignore[arg-type]


def test_any_reader_of_safetensors_opens_it(tmp_path: object) -> None:
    path = sample().save(f"{tmp_path}/x.safetensors")
    assert torch.equal(safetensors.torch.load_file(path)["t0"], sample().values)


def test_a_tuple_or_a_dict_of_results(tmp_path: object) -> None:
    path = save({"a": sample(), "b": (Pair(1, math.inf),)}, f"{tmp_path}/x")
    found = load(path)
    assert found["b"] == (Pair(1, math.inf),) and found["a"].pair == Pair(1, 0.5) and found["a"].worked_out == 7


@pytest.mark.parametrize(
    "value", [object(), {1: 2}, {"!": 3}, 1j, torch.nn.Linear(1, 1)], ids=lambda v: type(v).__name__
)
def test_what_is_not_plain_is_not_written(value: object, tmp_path: object) -> None:
    path = f"{tmp_path}/x"
    with pytest.raises(CheckpointError, match=r"plain data|only names"):
        sample(rest=(value,)).save(path)
    assert not os.path.exists(path)


def test_a_type_of_numbers_that_json_lacks() -> None:
    with pytest.raises(CheckpointError, match="bfloat16 cannot be written"):
        Sample("n", torch.zeros(2, dtype=torch.bfloat16)).to_dict()


def wrong(content: bytes) -> dict[str, bytes]:
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])

    def with_meta(**changes: str | None) -> bytes:
        meta = {**header["__metadata__"], **changes}
        meta = {k: v for k, v in meta.items() if v is not None}
        tensors = {"t0": sample().values}
        return safetensors.torch.save(tensors, meta)

    structure = header["__metadata__"]["structure"]
    return {
        "empty": b"",
        "text": b"hello, this is no such file at all",
        "a huge header": (2**62).to_bytes(8, "little") + content[8:],
        "safetensors of another": safetensors.torch.save({"t0": torch.zeros(2)}),
        "cut": content[: len(content) // 2],
        "without its end": content[:-1],
        "longer": content + b"\0",
        "one bit in the numbers": content[:-1] + bytes([content[-1] ^ 1]),
        "one bit in the structure": with_meta(structure=structure.replace('"n"', '"m"')),
        "another version": with_meta(throughtime="2"),
        "no checksum": with_meta(sha256=None),
        "json instead": json.dumps(sample().to_dict()).encode(),
    }


@pytest.mark.parametrize("name", list(wrong(safetensors.torch.save({"t0": sample().values}, {"structure": ""}))))
def test_a_wrong_file_is_refused_in_one_line(name: str, tmp_path: object) -> None:
    path = sample().save(f"{tmp_path}/x")
    path.write_bytes(wrong(path.read_bytes())[name])
    with pytest.raises(CheckpointError) as caught:
        Sample.load(path)
    told = str(caught.value)
    assert "\n" not in told and str(path) in told
    assert "damaged" in told or "format '2'" in told


def test_every_damaged_byte_is_noticed(tmp_path: object) -> None:
    path = Sample("n", torch.ones(2)).save(f"{tmp_path}/x")
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x20]) + content[at + 1 :])
        try:
            again = Sample.load(path)
        except CheckpointError:
            continue
        # Spaces behind the header, and letters of names that nothing depends on.
        assert again.name == "n" and torch.equal(again.values, torch.ones(2)), at


def test_no_file_and_no_place_to_write(tmp_path: object) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*No such file"):
        Sample.load(f"{tmp_path}/none")
    with pytest.raises(CheckpointError, match=r"cannot read .*directory"):
        Sample.load(f"{tmp_path}")
    with pytest.raises(CheckpointError, match="cannot write"):
        sample().save(f"{tmp_path}")


def test_a_full_disk_leaves_the_old_file(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sample().save(f"{tmp_path}/x")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        Sample("other", torch.zeros(1)).save(path)
    assert os.listdir(f"{tmp_path}") == ["x"]
    assert Sample.load(path).name == "n"


REFUSED_DATA = {
    "no mapping": 3,
    "another format": {**sample().to_dict(), "throughtime": 2},
    "unknown kind": {"throughtime": 1, "!": "Popen", "args": ["ls"]},
    "unknown field": {**sample().to_dict(), "more": 1},
    "missing field": {k: v for k, v in sample().to_dict().items() if k != "values"},
    "wrong shape": {**sample().to_dict(), "values": {"!": "tensor", "dtype": "float64", "shape": [7], "v": [1.0]}},
    "wrong dtype": {**sample().to_dict(), "values": {"!": "tensor", "dtype": "object", "shape": [1], "v": [1.0]}},
    "another kind": {"throughtime": 1, **sample().to_dict()["pair"]},
}


@pytest.mark.parametrize("name", REFUSED_DATA)
def test_wrong_data_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        Sample.from_dict(REFUSED_DATA[name])  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_html_is_escaped() -> None:
    assert "<b>" not in Sample("<b>", torch.zeros(1))._repr_html_()
