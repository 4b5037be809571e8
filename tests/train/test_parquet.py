"""Tables in Parquet files, and what is said where they cannot be read."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from throughtime.errors import DataError
from throughtime.train import ForecastConfig
from throughtime.train.data import prepare
from throughtime.train.data.table import read_table

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is an optional extra")
from pyarrow import parquet  # noqa: E402


def written(place: Path, **columns: list[object]) -> Path:
    parquet.write_table(pyarrow.table(columns), place / "t.parquet")
    return place / "t.parquet"


def test_cells_are_those_of_a_csv_file(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, a=[1, 2], b=[0.5, 1e-7], c=["x", None], d=[True, False]))
    assert table.columns == {"a": ["1", "2"], "b": ["0.5", "1e-07"], "c": ["x", ""], "d": ["1", "0"]}
    assert table.numeric() == ["a", "b", "d"]


def test_a_series_gives_the_batches_of_its_csv_file(tmp_path: Path) -> None:
    y = [float(v) for v in torch.randn(40, generator=torch.Generator().manual_seed(0)).double()]
    (tmp_path / "t.csv").write_text("y\n" + "".join(f"{v!r}\n" for v in y))
    one, other = (
        prepare(ForecastConfig(str(path), target="y", window=5, batch=2))
        for path in (written(tmp_path, y=y), tmp_path / "t.csv")
    )
    assert one.schema == other.schema
    assert torch.equal(one.train.batch(1).targets, other.train.batch(1).targets)


@pytest.mark.parametrize(
    ("columns", "says"), [({"a": []}, "has no rows"), ({"a": [1.0, None]}, "column 'a' is empty in row 2")]
)
def test_a_file_without_what_is_needed(tmp_path: Path, columns: dict[str, list[object]], says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_table(written(tmp_path, **columns)).numbers(["a"])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_gives_one_line(tmp_path: Path, data: st.DataObject) -> None:
    path = written(tmp_path, a=list(range(50)), b=["x"] * 50)
    raw = path.read_bytes()
    cut = data.draw(st.integers(0, len(raw)))
    path.write_bytes(raw[:cut] + data.draw(st.binary(max_size=8)) + raw[cut + 3 :])
    try:
        read_table(path)
    except DataError as error:
        assert "\n" not in str(error)


def test_without_pyarrow_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, a=[1])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"install pyarrow \(pip install pyarrow\), or save the table as CSV"):
        read_table(path)
