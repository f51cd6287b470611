"""Feature files: the three formats, other readers, and joined files."""

import csv
import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_faces import EXPECTED, FINGERPRINT, run, table, write_folder

from facezoo.extraction import join_files, writers
from facezoo.results import EXPRESSIONS

pytestmark = pytest.mark.usefixtures("_fake_faces")


@pytest.fixture
def files(folder, tmp_path, tiny, monkeypatch):
    """The same rows in every format, four of them without a face."""
    monkeypatch.setattr(writers, "BLOCK", 5)
    for suffix in ("parquet", "csv", "npz"):
        run(folder, tmp_path / f"f.{suffix}", tiny, on_missing="nan")
    return tmp_path


def numbers(texts):
    return np.array([text or "nan" for text in texts], np.float32)


def test_parquet_csv_and_npz_hold_the_same_rows(files):
    rows = table(files / "f.parquet")
    with np.load(files / "f.npz") as arrays:
        npz = dict(arrays)
    with (files / "f.csv").open(newline="") as file:
        text = list(csv.DictReader(file))
    assert len(rows) == len(text) == len(npz["file"]) == 12 + 4
    assert [r["file"] for r in rows] == [t["file"] for t in text] == npz["file"].tolist()
    assert [r["face"] for r in rows] == [int(t["face"]) for t in text] == npz["face"].tolist()
    labels = [r["label"] or "" for r in rows]
    assert labels == [t["label"] for t in text] == npz["label"].tolist()
    for name in ("expression", "identity"):
        expected = np.array([r[name] for r in rows], np.float32)
        np.testing.assert_array_equal(npz[name], expected)
        for d in range(8):
            np.testing.assert_array_equal(numbers([t[f"{name}_{d}"] for t in text]), expected[:, d])
    for index, name in enumerate(EXPRESSIONS):
        expected = np.array([r[f"p_{name}"] for r in rows], np.float32)
        np.testing.assert_array_equal(npz["probabilities"][:, index], expected)
        np.testing.assert_array_equal(numbers([t[f"p_{name}"] for t in text]), expected)
    expected = np.array([r["landmarks"] for r in rows], np.float32)
    np.testing.assert_array_equal(npz["landmarks"].reshape(-1, 10), expected)
    np.testing.assert_array_equal(numbers([t["nose_tip_y"] for t in text]), expected[:, 5])
    assert npz["box"].shape == (16, 4)
    assert npz["classes"].tolist() == list(EXPRESSIONS)
    assert str(npz["checkpoint"]) == rows[0]["checkpoint"] == text[0]["checkpoint"]


def test_parquet_has_fixed_size_lists_of_float32(files):
    schema = pq.read_schema(files / "f.parquet")
    assert schema.field("expression").type == pa.list_(pa.float32(), 8)
    assert schema.field("landmarks").type == pa.list_(pa.float32(), 10)
    metadata = json.loads(schema.metadata[b"facezoo"])
    assert metadata["features"] == {"expression": 8, "identity": 8}


def test_duckdb_finds_the_rows_of_nan_in_parquet(files):
    duckdb = pytest.importorskip("duckdb")
    path = str(files / "f.parquet")
    query = f"select count(*) from '{path}' where "
    for condition in ("isnan(score)", "face < 0", "isnan(p_neutral)", "isnan(expression[1])"):
        assert duckdb.sql(query + condition).fetchall() == [(4,)]
    assert duckdb.sql(query + "face >= 0").fetchall() == [(12,)]
    assert duckdb.sql(query + "face >= 0 and score > 0.5").fetchall() == [(12,)]


def test_polars_and_pandas_find_the_rows_of_nan_in_parquet(files):
    polars, pandas = pytest.importorskip("polars"), pytest.importorskip("pandas")
    lazy = polars.scan_parquet(files / "f.parquet")
    for column in ("score", "p_neutral"):
        assert lazy.filter(polars.col(column).is_nan()).collect().height == 4
    assert lazy.filter(polars.col("face") >= 0).collect().height == 12
    assert pandas.read_parquet(files / "f.parquet")["score"].isna().sum() == 4


def test_floating_point_columns_have_no_statistics_and_others_have(files):
    group = pq.ParquetFile(files / "f.parquet").metadata.row_group(0)
    columns = [group.column(n) for n in range(group.num_columns)]
    has_statistics = {c.path_in_schema: c.is_stats_set for c in columns}
    floats = {c.path_in_schema for c in columns if c.physical_type in ("FLOAT", "DOUBLE")}
    assert {name for name, has in has_statistics.items() if has} == {*has_statistics} - floats


def test_csv_readers_see_numbers_and_missing_values(files):
    duckdb, polars = pytest.importorskip("duckdb"), pytest.importorskip("polars")
    pandas = pytest.importorskip("pandas")
    path = files / "f.csv"
    assert "nan" not in path.read_text()
    for frame in (polars.read_csv(path), polars.scan_csv(path).collect()):
        for column in ("score", "expression_0", "p_neutral", "x0"):
            assert frame[column].dtype == polars.Float64
            assert frame[column].null_count() == 4
    rows = duckdb.sql(f"select count(*), count(score), count(expression_0) from '{path}'")
    assert rows.fetchall() == [(16, 12, 12)]
    assert duckdb.sql(f"select count(*) from '{path}' where score > 0.5").fetchall() == [(12,)]
    frame = pandas.read_csv(path)
    assert frame["expression_7"].dtype == np.float64
    assert frame["score"].isna().sum() == 4


def test_csv_and_npz_need_no_pyarrow_and_parquet_names_the_extra(
    folder, tmp_path, tiny, monkeypatch
):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    run(folder, tmp_path / "f.csv", tiny)
    run(folder, tmp_path / "f.npz", tiny)
    with pytest.raises(ImportError, match=r"facezoo\[parquet\]"):
        run(folder, tmp_path / "f.parquet", tiny)


def test_blocks_do_not_depend_on_the_parts(folder, tmp_path, tiny, monkeypatch):
    for parts in (1, 4, 100):
        monkeypatch.setattr("facezoo.extraction.run.PART_IMAGES", parts)
        for suffix in ("parquet", "csv", "npz"):
            run(folder, tmp_path / f"{parts}.{suffix}", tiny)
    for suffix in ("parquet", "csv", "npz"):
        contents = {(tmp_path / f"{parts}.{suffix}").read_bytes() for parts in (1, 4, 100)}
        assert len(contents) == 1


# --- joined files ------------------------------------------------------------------------------


def test_joined_files_hold_the_rows_of_all(folder, tmp_path, tiny):
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    run(folder, files[0], tiny)
    run(write_folder(tmp_path / "more", [2, 0, 1]), files[1], tiny, on_missing="nan")
    assert join_files(files, tmp_path / "new" / "all.parquet") == len(EXPECTED) + 4
    joined = tmp_path / "new" / "all.parquet"
    rows = [row for file in files for row in table(file)]
    assert [str(row) for row in table(joined)] == [str(row) for row in rows]
    assert not pq.ParquetFile(joined).metadata.row_group(1).column(2).is_stats_set
    with pytest.raises(FileExistsError, match="--overwrite"):
        join_files(files, joined)
    assert join_files(files[:1], joined, overwrite=True) == len(EXPECTED)


def test_columns_are_joined_by_name_and_versions_are_listed(folder, tmp_path, tiny, monkeypatch):
    own = dict(writers.VERSIONS)
    run(folder, tmp_path / "a.parquet", tiny)
    monkeypatch.setitem(writers.VERSIONS, "torch", "1.2.3")
    run(folder, tmp_path / "b.parquet", tiny, what=["identity", "expression"])
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    join_files(files, tmp_path / "all.parquet")
    schema = pq.read_schema(tmp_path / "all.parquet")
    assert schema.names == pq.read_schema(files[0]).names
    versions = json.loads(schema.metadata[b"facezoo"])["versions"]
    assert versions == {**own, "torch": f"{own['torch']}, 1.2.3"}
    rows = table(tmp_path / "all.parquet")
    assert rows[: len(EXPECTED)] == rows[len(EXPECTED) :]


def test_files_that_are_not_comparable_are_not_joined(folder, tmp_path, tiny, monkeypatch):
    run(folder, tmp_path / "a.parquet", tiny)
    monkeypatch.setattr(FINGERPRINT, lambda *_, **__: "fedcba9876543210")
    run(folder, tmp_path / "b.parquet", tiny)
    with pytest.raises(ValueError, match="has fingerprint 'fedcba9876543210' and"):
        join_files([tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path / "c.parquet")
    assert not (tmp_path / "c.parquet").exists()


def test_other_files_are_not_joined(folder, tmp_path, tiny):
    run(folder, tmp_path / "a.parquet", tiny)
    twice = [tmp_path / "a.parquet", folder / ".." / "a.parquet"]
    with pytest.raises(ValueError, match="is named twice"):
        join_files(twice, tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"must end in \.parquet, got .*week\.csv"):
        join_files(twice[:1], tmp_path / "week.csv")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    (tmp_path / "y.parquet").write_bytes(b"rubbish" * 10)
    with pytest.raises(ValueError, match="not written by facezoo extract"):
        join_files([tmp_path / "x.parquet"], tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="is not a Parquet file"):
        join_files([tmp_path / "y.parquet"], tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="no file to join"):
        join_files([], tmp_path / "c.parquet")
