"""The rows of an evaluation: files read safely, columns and conditions checked, parts drawn."""

from __future__ import annotations

import contextlib
import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from pgoutlier.detector import recipe_named
from pgoutlier.worker.demo.dataset import from_file
from pgoutlier.worker.evaluation import splits
from pgoutlier.worker.evaluation.files import FileError, read_table
from pgoutlier.worker.evaluation.splits import Split
from pgoutlier.worker.evaluation.table import Columns, Condition, EvaluationError, load

FRAME = pd.DataFrame({"a": [1.5, 2.5, 4.0], "b": [1, 2, 3], "label": [0, 1, 0]})


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=True, **arrays)
    return file.getvalue()


def parquet(frame: pd.DataFrame) -> bytes:
    file = io.BytesIO()
    frame.to_parquet(file)
    return file.getvalue()


CSV = FRAME.to_csv(index=False).encode()
WHOLE = {
    "rows.csv": CSV,
    "rows.csv.gz": gzip.compress(CSV, mtime=0),
    "rows.tsv": FRAME.to_csv(index=False, sep="\t").encode(),
    "rows.parquet": parquet(FRAME),
    "rows.npz": npz(X=FRAME[["a", "b"]].to_numpy(), y=FRAME["label"].to_numpy()),
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, bytes | str | pd.DataFrame], Path]:
    def written(name: str, content: bytes | str | pd.DataFrame) -> Path:
        path = tmp_path / name
        if isinstance(content, pd.DataFrame):
            content.to_csv(path, index=False)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return written


Write = Callable[[str, bytes | str | pd.DataFrame], Path]


@pytest.mark.parametrize("name", WHOLE)
def test_every_kind_of_file_gives_the_same_rows(write: Write, name: str) -> None:
    rows = read_table(write(name, WHOLE[name]))
    assert list(rows.columns) == (["0", "1", "y"] if name.endswith("npz") else ["a", "b", "label"])
    assert rows.to_numpy().tolist() == FRAME.to_numpy().tolist()


def test_columns_of_a_file_without_a_header_are_numbered(write: Write) -> None:
    rows = read_table(write("rows.csv", "1,2,3\n4,5,6\n"), header=False)
    assert list(rows.columns) == ["0", "1", "2"]
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("rows.csv", b"", "cannot be read"),
        ("rows.csv", b"a,b\n", "no rows"),
        ("rows.csv", b"a,b\n1,2,3\n4,5,6\n", "more fields"),
        ("rows.csv.gz", b"\x1f\x8bgarbage", "cannot be read"),
        ("rows.csv.gz", WHOLE["rows.csv.gz"][:30], "cannot be read"),
        ("rows.parquet", b"PAR1 garbage", "cannot be read"),
        ("rows.xlsx", CSV, "none of .csv"),
        ("rows.npz", b"garbage", "not an NPZ"),
        ("rows.npz", npz(y=np.zeros(3)), "no array X"),
        ("rows.npz", npz(X=np.array([[{}], [[]]], dtype=object)), "allow_pickle=False"),
        ("rows.npz", npz(X=np.zeros((2, 1)), y=np.array([None, 1], dtype=object)), "allow_pickle=False"),
        ("rows.npz", npz(X=np.zeros(3)), "shape"),
        ("rows.npz", npz(X=np.zeros((3, 2)), y=np.zeros(2)), "shape"),
        ("rows.npz", npz(X=np.zeros((3, 2), dtype=complex)), "must hold numbers"),
        ("rows.npz", npz(X=np.array([["a"], ["b"]])), "must hold numbers"),
    ],
)
def test_a_file_that_is_no_table_is_refused_in_one_sentence(
    write: Write, name: str, content: bytes, says: str
) -> None:
    with pytest.raises(FileError, match=says) as caught:
        read_table(write(name, content))
    assert "\n" not in caught.value.sentence


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="There is no file"):
        read_table(tmp_path / "rows.csv")


def read_or_refused(path: Path) -> None:
    with contextlib.suppress(FileError):
        rows = read_table(path)
        assert len(rows)
        assert all(isinstance(name, str) for name in rows.columns)


@given(name=st.sampled_from(sorted(WHOLE)), content=st.binary(max_size=200))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_garbage_is_a_table_or_refused(write: Write, name: str, content: bytes) -> None:
    read_or_refused(write(name, content))


@given(
    name=st.sampled_from(sorted(WHOLE)),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.floats(0, 1),
)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_damaged_file_is_a_table_or_refused(
    write: Write, name: str, changes: list[tuple[float, int]], cut: float
) -> None:
    content = bytearray(WHOLE[name])
    for place, byte in changes:
        content[int(place * len(content))] = byte
    read_or_refused(write(name, bytes(content) if cut > 0.3 else bytes(content[: int(cut * len(content))])))


def test_the_demo_takes_the_same_files(write: Write) -> None:
    generator = np.random.default_rng(0)
    arrays = npz(X=generator.normal(size=(1_000, 2)), y=np.arange(1_000) < 10)
    found = from_file(write("rows.npz", arrays))
    assert (found.label, found.features, len(found.rows)) == ("y", ('"0"', '"1"'), 1_000)
    with pytest.raises(FileError, match="no header"):
        from_file(write("rows.csv", "1,2\n" * 1_000))


def test_exact_duplicates_go_before_anything_else_and_are_counted(write: Write) -> None:
    frame = pd.DataFrame({"id": [1, 2, 2, 2, 3], "a": [5.0, 5.0, 5.0, 6.0, np.nan], "label": [0, 0, 0, 1, 0]})
    path = write("rows.csv", frame)
    table = load(path, Columns(label="label", drop=("id",)))
    assert table.features.tolist() == [[5.0], [5.0], [6.0]]
    assert table.is_anomaly is not None
    assert table.is_anomaly.tolist() == [False, False, True]
    assert (table.n_read, table.left_out) == (5, {"duplicates": 1, "filtered": 0, "incomplete": 1})
    assert len(load(path, Columns(), keep_duplicates=True, keep_incomplete=True).features) == 5


@pytest.mark.parametrize("times", [[3, 1, 2], ["2026-01-03", "2026-01-01T00:00:00Z", "2026-01-01T12:00:00"]])
def test_rows_are_put_in_the_order_of_the_time_column_which_is_no_feature(
    write: Write, times: list[Any]
) -> None:
    table = load(write("rows.csv", pd.DataFrame({"t": times, "a": [30, 10, 20]})), Columns(time="t"))
    assert table.feature_names == ("a",)
    assert table.features.ravel().tolist() == [10, 20, 30]
    assert table.times is not None
    assert (np.diff(table.times) > 0).all()


def test_the_normal_value_and_quoted_labels_are_understood(write: Write) -> None:
    path = write("rows.csv", "a,label\n1,\"'0'\"\n2,\"'1'\"\n")
    anomalies = [load(path, Columns(label="label", normal_value=value)).is_anomaly for value in (0, 1)]
    assert [found.tolist() for found in anomalies if found is not None] == [[False, True], [True, False]]


def test_the_labels_of_an_npz_file_are_never_a_feature(write: Write) -> None:
    table = load(write("rows.npz", WHOLE["rows.npz"]), Columns())
    assert table.feature_names == ("0", "1")
    assert table.is_anomaly is not None


@pytest.mark.parametrize(
    ("content", "columns", "says"),
    [
        ("a,b\n1,2\n", Columns(label="c"), "no column 'c' for --label; its columns: a, b"),
        ("a,b\n1,2\n", Columns(time="c"), "no column 'c' for --time"),
        ("a,b\n1,2\n", Columns(drop=("c",)), "no column 'c' for --drop"),
        ("a,b\n1,2\n", Columns(label="a", drop=("a",)), "'a' is the label"),
        ("a,b,c\n1,x,2026-01-01\n", Columns(), "not numeric cannot be features: b, c; .*--drop 'b,c'"),
        ("a,b\n1,2\n", Columns(label="a", drop=("b",)), "no column left"),
        ("a,b\n1,0\n2,7\n", Columns(label="b"), "0 and 1 only, and 1 rows hold something else, such as '7'"),
        ("a,b\n1,0\n2,\n", Columns(label="b"), "0 and 1 only"),
        ("a,b\n1,yes\n", Columns(time="b"), "neither numbers nor times"),
        ("a,b\n1,1\n2,\n", Columns(time="b"), "empty in 1 rows"),
        ("a\ninf\n", Columns(), "No row of .* is left: 0 exact duplicates, .* 1 with NaN or infinity"),
        ("1,2\n3,4\n", Columns(), "no header.*--no-header"),
    ],
)
def test_columns_that_cannot_be_used_are_refused(
    write: Write, content: str, columns: Columns, says: str
) -> None:
    with pytest.raises((EvaluationError, FileError), match=says):
        load(write("rows.csv", content), columns)


def test_lists_in_a_parquet_file_are_refused(write: Write) -> None:
    with pytest.raises(EvaluationError, match=r"not numeric|lists"):
        load(write("rows.parquet", parquet(pd.DataFrame({"a": [[1], [2]]}))), Columns())
    with pytest.raises(EvaluationError, match="lists"):
        load(
            write("rows.parquet", parquet(pd.DataFrame({"a": [[1], [2]], "b": [1, 2]}))), Columns(drop=("a",))
        )


def test_a_condition_keeps_only_the_rows_that_fulfil_it(write: Write) -> None:
    path = write("rows.csv", pd.DataFrame({"a": [1, 2, 3, 4], "Amount (EUR)": [10, 1500, 2000, np.nan]}))
    table = load(path, Columns(), where=("Amount (EUR) < 1500.5", "a!=1"), keep_incomplete=True)
    assert table.features.tolist() == [[2, 1500]]
    assert table.left_out["filtered"] == 3


@given(
    column=st.text(min_size=1).filter(lambda name: name == name.strip() and name[-1] not in "<>=!"),
    operator=st.sampled_from(["<", "<=", ">", ">=", "=", "==", "!="]),
    number=st.floats(allow_nan=False, allow_infinity=False),
    space=st.sampled_from(["", " "]),
)
def test_a_condition_is_read_as_it_was_written(column: str, operator: str, number: float, space: str) -> None:
    text = f"{column}{space}{operator}{space}{number!r}"
    assert Condition.parse(text) == Condition(column, operator, number)


@given(st.text())
def test_any_text_is_a_condition_or_refused(text: str) -> None:
    with contextlib.suppress(EvaluationError):
        condition = Condition.parse(text)
        assert condition.column in text
        assert np.isfinite(condition.number)


@pytest.mark.parametrize(
    "text", ["Amount", "Amount<", "<5", "Amount<1e999", "Amount<nan", "a<__import__('os')"]
)
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(EvaluationError, match="--where"):
        Condition.parse(text)


@given(
    n_rows=st.integers(2, 400),
    test_size=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32 - 1),
    order=st.sampled_from(["random", "time"]),
)
def test_every_row_is_in_one_part(n_rows: int, test_size: float, seed: int, order: splits.Order) -> None:
    try:
        training, test = Split(order, test_size, seed).parts(n_rows)
    except EvaluationError:
        assert int(np.ceil(n_rows * test_size)) == n_rows
        return
    assert sorted([*training, *test]) == list(range(n_rows))
    assert len(test) == int(np.ceil(n_rows * test_size))
    assert (np.diff(training) > 0).all()
    assert (np.diff(test) > 0).all()
    if order == "time":
        assert training.max() < test.min()


def test_a_random_split_is_the_one_that_published_figures_rest_on() -> None:
    training, test = Split("random", 0.2, 42).parts(283_457)
    wanted = train_test_split(np.arange(283_457), test_size=0.2, random_state=42)
    assert set(training) == set(wanted[0])
    assert set(test) == set(wanted[1])


def test_without_options_the_split_is_the_recipes_own() -> None:
    ecg, default = recipe_named("ecg-dense-32-16-8"), recipe_named("default")
    assert splits.chosen(ecg) == Split("random", 0.2, 21)
    assert splits.chosen(default) == Split("random", 0.2, 0)
    assert splits.chosen(ecg, order="time") == Split("time", 0.3, 21)
    assert splits.chosen(ecg, test_size=0.5, seed=7) == Split("random", 0.5, 7)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"order": "shuffled"}, "--split random or --split time"),
        ({"test_size": 0.0}, "--test-size 0 "),
        ({"test_size": 1.0}, "--test-size 1 "),
        ({"test_size": float("nan")}, "--test-size nan"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_a_split_out_of_bounds_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(EvaluationError, match=says):
        splits.chosen(recipe_named("default"), **options)
