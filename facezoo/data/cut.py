"""Copy a few rows of the packs, to test a training recipe in seconds."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

ROWS = 24
"""Rows of each split."""
_PAIRS = "lfw_pairs_val.csv"


def cut_packs(source: Path, target: Path, rows: int = ROWS) -> None:
    """Copy a folder of training data with the first rows of each split of its packs.

    ``lfw_pairs_val.csv`` keeps one pair per fold of the same identity and one of two identities;
    the pack keeps their images. Other files are copied whole, folders are not copied.

    Args:
        source: folder with ``.parquet`` packs and other files.
        rows: number of rows of each split.

    Raises:
        FileNotFoundError: if there is no such folder.
        ImportError: if there are packs and pyarrow is missing.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"no folder {source}; --data must name the folder with the packs")
    target.mkdir(parents=True)
    named: set[str] = set()
    if (source / _PAIRS).is_file():
        named = _cut_pairs(source / _PAIRS, target / _PAIRS)
    for path in sorted(source.iterdir()):
        if path.suffix == ".parquet":
            _cut_pack(path, target / path.name, rows, named if path.name == "lfw.parquet" else ())
        elif path.is_file() and path.name != _PAIRS:
            shutil.copyfile(path, target / path.name)


def _cut_pairs(source: Path, target: Path) -> set[str]:
    """Copy one pair of each kind per fold; return the files that they name."""
    pairs: dict[tuple[str, str], dict[str, str]] = {}
    with source.open(newline="") as file:
        for row in csv.DictReader(file):
            pairs.setdefault((row["fold"], row["same"]), row)
    with target.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["file_a", "file_b", "same", "fold"])
        writer.writeheader()
        writer.writerows(pairs.values())
    return {row[key] for row in pairs.values() for key in ("file_a", "file_b")}


def _cut_pack(source: Path, target: Path, rows: int, named: set[str] | tuple[()]) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetFile(source) as pack:
        light = [name for name in ("split", "file") if name in pack.schema_arrow.names]
        metadata = pack.read(light).to_pylist() if light else [{}] * pack.metadata.num_rows
        counts: dict[str, int] = {}
        indices = []
        for index, row in enumerate(metadata):
            split = row.get("split", "")
            counts[split] = counts.get(split, 0) + 1
            if counts[split] <= rows or row.get("file") in named:
                indices.append(index)
        with pq.ParquetWriter(target, pack.schema_arrow) as writer:
            start = 0
            for group in range(pack.num_row_groups):
                count = pack.metadata.row_group(group).num_rows
                inside = [index - start for index in indices if start <= index < start + count]
                if inside:
                    writer.write_table(pack.read_row_group(group).take(inside))
                start += count
