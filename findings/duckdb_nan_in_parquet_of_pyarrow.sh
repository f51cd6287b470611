#!/usr/bin/env bash
# Believed: DuckDB finds the NaN rows of a float column in a Parquet file that pyarrow wrote; polars does.
# So it is: pyarrow leaves NaN out of the row-group statistics, DuckDB skips row groups by these
# statistics, and since it orders NaN above all numbers, both isnan(score) and score > 0.95 find
# nothing. The same file without statistics gives the NaN row for both.
# Version and date: duckdb 2.0.1, pyarrow 26.0.1, polars 2.1.0, 2026-11-29.
# What follows for feature files: write no statistics for float columns that may hold NaN.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "duckdb==2.0.1" "pyarrow==26.0.1" "polars==2.1.0" "numpy==2.4.6"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import duckdb
import polars
import pyarrow
import pyarrow.parquet

table = pyarrow.table({"score": pyarrow.array([0.9, float("nan"), 0.8], pyarrow.float32())})
counts = {}
for name, statistics in {"with": True, "without": False}.items():
    path = f"{name}.parquet"
    pyarrow.parquet.write_table(table, path, write_statistics=statistics)
    counts[name] = [
        duckdb.sql(f"SELECT count(*) FROM '{path}' WHERE {condition}").limit(1).fetchall()[0][0]
        for condition in ("isnan(score)", "score > 0.95")
    ]
    lazy = polars.scan_parquet(path).filter(polars.col("score").is_nan()).collect()
    print(f"{name} statistics: DuckDB finds {counts[name]} rows, polars {len(lazy)}")
    assert len(lazy) == 1
assert counts == {"with": [0, 0], "without": [1, 1]}, "DuckDB or pyarrow behaves otherwise now"
PYTHON
