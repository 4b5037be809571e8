"""CSV tables: reading them, what is said of bad ones, the split in time, normalisation of the training part only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from throughtime.errors import DataError, ThroughtimeError
from throughtime.train import ForecastConfig, LabelConfig
from throughtime.train.data import prepare, series
from throughtime.train.data.scaling import Scaling
from throughtime.train.data.schema import ForecastSchema, LabelSchema
from throughtime.train.data.table import read_table


def written(place: Path, content: str, name: str = "t.csv") -> str:
    (place / name).write_text(content)
    return str(place / name)


def rows(header: str, lines: list[tuple[object, ...]]) -> str:
    return "\n".join([header, *(",".join(map(str, line)) for line in lines)]) + "\n"


def test_a_table_is_read_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes('\ufeffday;"sales; net";note\r\n1;2.5;"a ""b"""\r\n\r\n2;-1e3;c\r\n'.encode())
    table = read_table(path)
    assert table.columns == {"day": ["1", "2"], "sales; net": ["2.5", "-1e3"], "note": ['a "b"', "c"]}
    assert table.numeric() == ["day", "sales; net"] and len(table) == 2
    assert table.numbers(["sales; net"]).tolist() == [[2.5], [-1000.0]]
    assert table.chosen("") == ["day", "sales; net"] and table.chosen("day", ["x"]) == ["day"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\n\n", "has no header"),
        (b"a,b\n", "has a header and no rows"),
        (b"a,a\n1,2\n", "'a' stands there twice in the header"),
        (b"a,\n1,2\n", "a column has no name in the header"),
        (b"a,b\n1,2\n3\n", "line 3: 1 cells, and the header names 2 columns"),
        (b'a,b\n1,"2\n', "line 2: unexpected end of data"),
        (b"a,b\n1,\x002\n", "has a zero byte"),
        (b"a,b\n1,\xff\n", "is not UTF-8 text: byte 0xff at offset 6"),
        (b"a,b\n1,\n", "column 'b' is empty in row 1"),
        (b"a,b\n1,2\n1,x\n", "column 'b' is 'x', not a finite number in row 2"),
        (b"a,b\n1,inf\n", "is 'inf', not a finite number"),
        (b"a,c\n1,2\n", "has no column 'b'; its columns are 'a', 'c'"),
    ],
)
def test_what_is_no_table_of_numbers_is_refused_with_its_place(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_table(path).numbers(["b"])
    assert says in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


@settings(deadline=None, max_examples=80)
@given(
    content=st.one_of(
        st.binary(max_size=80),
        st.text(alphabet='ab12.,;\n"\t -', max_size=80).map(str.encode),
        st.lists(st.sampled_from(["1,2", "3,x", "a,b", "0,-1", ",", '"']), max_size=12).map(
            lambda lines: "\n".join(["a,b", *lines]).encode()
        ),
    )
)
def test_any_file_is_read_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "t.csv"
    path.write_bytes(content)
    for config in (
        ForecastConfig(str(path), target="a", window=2, batch=1, valid_fraction=0.3),
        LabelConfig(str(path), label="a", per="step", window=2, batch=1, embedding=0),
        LabelConfig(str(path), label="b", characters="a", batch=2),
    ):
        try:
            data = prepare(config)
        except ThroughtimeError as error:
            assert "\n" not in str(error)
        else:
            batch = data.train.batch(0)
            assert batch.count and (not batch.inputs.is_floating_point() or bool(batch.inputs.isfinite().all()))


# --- forecasting ------------------------------------------------------------------------------------------------------


def series_file(place: Path, n: int = 60) -> tuple[str, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = (10 * torch.rand(2, n, generator=generator)).round(decimals=3).double()
    y[48:] += 1000  # were any of these steps used for the normalisation, it would show
    lines = [(f"d{t}", float(x[t]), float(y[t])) for t in range(n)]
    return written(place, rows("day,x,y", lines)), x, y


def test_targets_are_the_steps_ahead_and_no_part_reaches_into_the_next(tmp_path: Path) -> None:
    path, x, y = series_file(tmp_path)
    config = ForecastConfig(path, target="y", horizon=3, window=5, batch=2, valid_fraction=0.2, test_fraction=0.1)
    data = prepare(config)
    schema = data.schema
    assert isinstance(schema, ForecastSchema) and schema.inputs.columns == ("x", "y")
    # 60 steps: 42 to train on, 12 to validate, 6 for the test.
    assert schema.inputs.mean == pytest.approx([float(x[:42].mean()), float(y[:42].mean())])
    ahead = torch.stack([y[1 + k : 40 + k] for k in range(3)], 1)  # origins 0 ... 38: the last target is step 41
    assert schema.offset == pytest.approx(ahead.mean(0).tolist())
    assert schema.factor == pytest.approx(ahead.std(0, unbiased=False).tolist())
    offset, factor = torch.tensor(schema.offset), torch.tensor(schema.factor)
    first = data.train.batch(0)
    assert first.inputs.shape == (5, 2, 2) and first.targets.shape == (5, 2, 3)
    for b, start in ((0, 0), (1, 19)):
        for t in range(5):
            now = start + t
            want = schema.inputs(torch.stack([x, y], 1))[now]
            torch.testing.assert_close(first.inputs[t, b], want)
            torch.testing.assert_close(first.targets[t, b] * factor + offset, y[now + 1 : now + 4].float())
    for source, begin, end in ((data.valid, 42, 54), (data.test, 54, 60)):
        assert source is not None
        seen: list[float] = []
        for i in range(len(source)):
            batch = source.batch(i)
            assert batch.inputs.shape[1] == 1
            scored = batch.scored if batch.scored is not None else torch.ones(batch.targets.shape[:2]).bool()
            seen += (batch.targets[scored] * factor + offset)[:, 0].tolist()
        assert seen == pytest.approx(y[begin : end - 2].tolist(), rel=1e-4)  # the first lead of each scored origin


def test_with_a_season_the_deviation_from_the_last_one_is_the_target(tmp_path: Path) -> None:
    path, _, y = series_file(tmp_path)
    config = ForecastConfig(path, target="y", inputs="x", horizon=5, season=4, window=5, batch=1, valid_fraction=0.2)
    data = prepare(config)
    schema = data.schema
    assert isinstance(schema, ForecastSchema) and schema.inputs.columns == ("y", "x")  # the target is always an input
    batch = data.train.batch(0)
    offset, factor = torch.tensor(schema.offset), torch.tensor(schema.factor)
    for t in range(5):
        now = 4 + t
        base = torch.tensor([y[now - 3], y[now - 2], y[now - 1], y[now], y[now - 3]])
        want = y[now + 1 : now + 6] - base
        torch.testing.assert_close((batch.targets[t, 0] * factor + offset).double(), want, rtol=1e-4, atol=1e-4)
    own = batch.inputs[:, 0, 0] * schema.inputs.deviation[0] + schema.inputs.mean[0]
    torch.testing.assert_close(own.double(), y[4:9] - y[:5], rtol=1e-4, atol=1e-4)


def test_naive_forecasts_are_measured_on_the_same_steps(tmp_path: Path) -> None:
    path, _, y = series_file(tmp_path)
    data = prepare(ForecastConfig(path, target="y", horizon=2, season=3, window=5, batch=1, valid_fraction=0.2))
    last = [abs(y[t + k] - y[t]) for t in range(47, 58) for k in (1, 2)]
    season = [abs(y[t + k] - y[t + k - 3]) for t in range(47, 58) for k in (1, 2)]
    assert data.references["valid"] == pytest.approx(
        {
            "mae of the last value": float(torch.stack(last).mean()),
            "mae of the last season": float(torch.stack(season).mean()),
        }
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target": "z"}, "has no column 'z'"),
        ({"target": "day"}, "column 'day' is 'd0', not a finite number"),
        ({"inputs": "x,x"}, "named twice"),
        ({"window": 50}, "is too short: 47 steps to train on have 1 known steps ahead"),
        ({"season": 60}, "no more than a season of 60"),
        ({"horizon": 13}, "the part that --valid-fraction keeps has 12 steps, fewer than the 13 to forecast"),
    ],
)
def test_a_series_that_cannot_be_used_says_why(tmp_path: Path, options: dict[str, object], says: str) -> None:
    path, _, _ = series_file(tmp_path)
    with pytest.raises(DataError) as caught:
        prepare(ForecastConfig(path, **{"target": "y", "window": 4, "batch": 1, **options}))  # type: ignore[arg-type]
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_column_that_never_changes_and_one_that_is_huge() -> None:
    scaling = Scaling.fit(["c"], torch.full((5, 1), 7.0))
    assert scaling.deviation == (1.0,) and scaling(torch.tensor([[7.0]])).tolist() == [[0.0]]
    with pytest.raises(DataError, match="'c' are too large to be normalised"):
        Scaling.fit(["c"], torch.tensor([[1e308], [-1e308], [1e308]], dtype=torch.float64))


def test_the_forecast_of_a_season_ago() -> None:
    y = torch.arange(10.0)
    assert series.seasonal_naive(y, torch.tensor([7]), 7, 3).tolist() == [[5, 6, 7, 5, 6, 7, 5]]
    assert series.seasonal_naive(y, torch.tensor([7]), 3, 1).tolist() == [[7, 7, 7]]


# --- labels -----------------------------------------------------------------------------------------------------------


def test_rows_of_characters(tmp_path: Path) -> None:
    path = written(tmp_path, rows("name,lang", [("ab", "x"), ("c", "y"), ("bca", "x"), ("aa", "y"), ("cb", "x")]))
    data = prepare(LabelConfig(path, label="lang", characters="name", valid_fraction=0.4, batch=3))
    schema = data.schema
    assert isinstance(schema, LabelSchema) and schema.vocabulary is not None and data.valid is not None
    assert schema.vocabulary.characters == "abc" and schema.labels == ("x", "y") and schema.at_end
    seen = {}
    for source in (data.train, data.valid):
        batch = source.batch(0)
        lengths = batch.lengths if batch.lengths is not None else [len(batch.inputs)] * batch.inputs.shape[1]
        for b, n in enumerate(lengths):
            seen["".join("abc"[i] for i in batch.inputs[:n, b])] = schema.labels[int(batch.targets[0, b])]
    assert seen == {"ab": "x", "c": "y", "bca": "x", "aa": "y", "cb": "x"}


def test_rows_grouped_to_sequences(tmp_path: Path) -> None:
    lines = [("p", 1, "u"), ("q", 10, "v"), ("p", 3, "u"), ("q", 20, "v"), ("r", 5, "u"), ("p", 2, "u")]
    path = written(tmp_path, rows("who,x,kind", lines))
    data = prepare(LabelConfig(path, label="kind", sequence="who", valid_fraction=0.0, batch=3, seed=3))
    batch = data.train.batch(0)
    scaling = data.schema.inputs  # type: ignore[attr-defined]
    assert batch.lengths is not None and batch.lengths.tolist() == [3, 2, 1]
    values = batch.inputs[..., 0] * scaling.deviation[0] + scaling.mean[0]
    assert values[:, 0].tolist() == pytest.approx([1, 3, 2]) and values[:2, 1].tolist() == pytest.approx([10, 20])
    assert batch.targets.tolist() == [[0, 1, 0]]
    each = prepare(LabelConfig(path, label="kind", sequence="who", per="step", valid_fraction=0.0, batch=3))
    assert each.train.batch(0).targets[:, 0].tolist() == [0, 0, 0]
    with pytest.raises(DataError, match=r"sequence 'p' has the labels 'u' and 'v' \(row 3\); give it one"):
        other = written(tmp_path, rows("who,x,kind", [("p", 1, "u"), ("q", 1, "u"), ("p", 3, "v")]), "o.csv")
        prepare(LabelConfig(other, label="kind", sequence="who", valid_fraction=0.0))


def test_the_normalisation_of_sequences_is_of_the_training_part_only(tmp_path: Path) -> None:
    lines = [(n, 1000 * n + t, "uv"[n % 2]) for n in range(10) for t in range(3)]
    path = written(tmp_path, rows("who,x,kind", lines))
    data = prepare(LabelConfig(path, label="kind", sequence="who", valid_fraction=0.3, batch=20))
    batch = data.train.batch(0)
    assert batch.inputs.shape == (3, 7, 1)
    assert float(batch.inputs.mean()) == pytest.approx(0, abs=1e-5)
    assert float(batch.inputs.std(unbiased=False)) == pytest.approx(1, rel=1e-4)
    assert data.valid is not None and float(data.valid.batch(0).inputs.mean().abs()) > 1e-3


def test_one_series_with_a_label_per_step_is_split_in_time(tmp_path: Path) -> None:
    path = written(tmp_path, rows("x,kind", [(t, "ab"[t % 2]) for t in range(40)]))
    data = prepare(LabelConfig(path, label="kind", per="step", window=5, batch=2, valid_fraction=0.25))
    assert data.valid is not None and not data.schema.at_end
    batch = data.valid.batch(0)
    assert batch.targets[:, 0].tolist() == [0, 1, 0, 1, 0] and float(data.train.batch(0).inputs.max()) < float(
        batch.inputs.min()
    )
    assert data.references["valid"] == {"accuracy of the commonest label": 0.5}


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        ("x,k\n1,a\n2,a\n", {"per": "step", "window": 1}, "has one label, 'a'"),
        ("x,k\n1,a\n2,\n", {"per": "step", "window": 1}, "is empty in row 2; label each row"),
        ("x,k\nu,a\nv,b\n", {"per": "step", "window": 1}, "has no column of numbers to learn from"),
        ("x,k\n,a\nv,b\n", {"characters": "x"}, "is empty in row 1; a sequence has a step"),
        ("x,k\n1,a\n2,b\n", {"per": "step", "window": 9}, "is too short"),
        ("x,k\nu,a\nv,b\n", {"characters": "x"}, "leaves none for the part 'valid'"),
    ],
)
def test_labels_that_cannot_be_learned_say_why(
    tmp_path: Path, content: str, options: dict[str, object], says: str
) -> None:
    with pytest.raises(DataError) as caught:
        prepare(LabelConfig(written(tmp_path, content), label="k", **options))  # type: ignore[arg-type]
    assert says in str(caught.value) and "\n" not in str(caught.value)
