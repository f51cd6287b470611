"""Photographs with classes of a user's own: a folder per class, or a table in CSV or parquet."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facezoo.errors import warn_once
from facezoo.preprocess.folders import images_in, skipped_message
from facezoo.preprocess.images import ImageSource

LABELS = ("label", "expression", "class")
"""Columns that are looked for where none is named, in this order."""
FILES = ("file", "path", "filename")
PERSONS = ("identity", "person", "subject")
SPLITS = ("train", "val", "test")
WORDS = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
"""Other names of the splits."""
HELD_OUT = 0.2
"""Share of the photographs that validates where nothing says which do."""


@dataclass(frozen=True)
class LabelledImages:
    """Photographs and the class of each; the N rows of all fields agree."""

    name: str
    images: list[ImageSource]
    """Paths, or the bytes of files."""
    labels: Tensor
    """Index in ``classes``, int64, (N,)."""
    classes: tuple[str, ...]
    files: list[str]
    """What the photographs are called."""
    splits: list[str]
    """``"train"``, ``"val"`` or ``"test"``, empty where the source does not say."""
    persons: list[str]
    """Who is shown, empty where unknown."""
    landmarks: Tensor | None = None
    """Five points in pixels, NaN where unknown, (N, 5, 2); None if there are none."""

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, split: str) -> Tensor:
        """Row numbers of a split, int64, (M,).

        Without a validation split in the source, about a fifth of what is not for testing
        validates: of the persons where they are known, else of the photographs, chosen by the hash
        of their names, so that a photograph keeps its side when others are added. With one, rows
        of which the source does not say a split are to train on.

        Raises:
            ValueError: if there is no such split.
        """
        if split not in SPLITS:
            raise ValueError(f"split must be {', '.join(SPLITS)}, got {split!r}")
        sides = self.splits
        if "val" not in sides:
            keys = [person or file for person, file in zip(self.persons, self.files, strict=True)]
            chosen = ["val" if _share(key) < HELD_OUT else "train" for key in keys]
            sides = [s if s == "test" else c for s, c in zip(sides, chosen, strict=True)]
        sides = [side or "train" for side in sides]
        return torch.tensor([i for i, s in enumerate(sides) if s == split], dtype=torch.int64)


def read_labelled(
    source: str | os.PathLike[str],
    *,
    label_column: str | None = None,
    classes: Sequence[str] | None = None,
) -> LabelledImages:
    """Photographs and their classes.

    Args:
        source: one of

            - a folder with a folder of photographs per class, or with ``train``, ``val`` and
              ``test`` folders of such; what is hidden, by a dot, is passed over;
            - a ``.csv`` file with a column ``file`` (relative to it) and one of labels;
            - a ``.parquet`` file with a column ``image`` (bytes, or structs of ``bytes`` and
              ``path`` as the datasets library writes them) or ``file``, and one of labels.

            Tables may also have the columns ``split``, ``identity`` and, in parquet, ``landmarks``
            (ten numbers x, y in pixels). Rows without a label are left out.
        label_column: of a table; None for the first of ``LABELS`` that is there.
        classes: which classes to keep, in this order; None for all, in the order of their names,
            or of their numbers where all are whole numbers.

    Raises:
        FileNotFoundError: if there is no such file or folder, or a table names a file that is not
            there.
        ImportError: if it is parquet and pyarrow is not installed.
        ValueError: if it holds fewer than two classes, or lacks a column, or is a folder and a
            column is named, or a row with a label has no file, or a ``.csv`` file is not in UTF-8.
    """
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"no file or folder {path}; give a folder, .csv or .parquet file")
    suffix = path.suffix.lower()
    if path.is_dir():
        if label_column is not None:
            raise ValueError(
                f"{path} is a folder, and a folder has no columns: the names of the folders in it "
                f"are the labels; leave out the column {label_column!r}, or give a table"
            )
        columns = _from_folder(path)
    elif suffix in (".csv", ".parquet"):
        table = _csv_columns(path) if suffix == ".csv" else _parquet_columns(path, label_column)
        columns = _from_table(path, table, label_column)
    else:
        raise ValueError(f"labels come from a folder, .csv or .parquet file, got {str(path)!r}")
    return _labelled(path, columns, classes)


def _labelled(
    path: Path, columns: dict[str, list[Any]], classes: Sequence[str] | None
) -> LabelledImages:
    """The rows whose label is wanted."""
    words = columns["label"]
    known = _in_order({word for word in words if word is not None})
    wanted = tuple(known if classes is None else classes)
    if unknown := [word for word in wanted if word not in known]:
        raise ValueError(f"{path} has no class {unknown[0]!r}; it has {', '.join(known) or 'none'}")
    if len(set(wanted)) < 2:
        raise ValueError(
            f"{path} must hold two classes or more, got {', '.join(wanted) or 'none'}; a folder "
            "needs one folder per class, a table a column of labels"
        )
    rows = [row for row, word in enumerate(words) if word in wanted]
    points = columns.get("landmarks")
    return LabelledImages(
        name=path.name,
        images=[columns["image"][row] for row in rows],
        labels=torch.tensor([wanted.index(words[row] or "") for row in rows]),
        classes=wanted,
        files=[columns["file"][row] for row in rows],
        splits=[_split_word(path, columns["split"][row]) for row in rows],
        persons=[_word(columns["person"][row]) or "" for row in rows],
        landmarks=None if points is None else _points([points[row] for row in rows]),
    )


def _in_order(words: set[str]) -> list[str]:
    """Names in their order, whole numbers in theirs."""
    if all(word.removeprefix("-").isdecimal() for word in words):
        return sorted(words, key=lambda word: (int(word), word))
    return sorted(words)


def _from_folder(root: Path) -> dict[str, list[Any]]:
    folders = _shown_folders(root)
    by_split = {path: WORDS.get(path.name.lower(), path.name.lower()) for path in folders}
    if not any(word in SPLITS for word in by_split.values()):
        by_split = {root: ""}
    elif wrong := [path.name for path, word in by_split.items() if word not in SPLITS]:
        raise ValueError(f"{root} has folders of splits, and {wrong[0]!r} beside them; move it")
    if loose := [folder / n for folder in {root, *by_split} for n in images_in(folder, False)[0]]:
        warn_once(
            f"{len(loose):,} photographs are in no folder of a class and are left out, such as "
            f"{min(loose)}"
        )
    columns: dict[str, list[Any]] = {k: [] for k in ("image", "file", "label", "split", "person")}
    skipped: list[str] = []
    for folder, split in by_split.items():
        for inner in _shown_folders(folder):
            names, unreadable = images_in(inner)
            skipped += [f"{inner.relative_to(root).as_posix()}/{name}" for name in unreadable]
            for file in sorted(inner / name for name in names):
                values = (file, file.relative_to(root).as_posix(), inner.name, split, "")
                for column, value in zip(columns.values(), values, strict=True):
                    column.append(value)
    if skipped:
        warn_once(f"{root}: {skipped_message(skipped)}")
    return columns


def _shown_folders(folder: Path) -> list[Path]:
    inside = (path for path in folder.iterdir() if path.is_dir())
    return sorted(path for path in inside if not path.name.startswith("."))


def _from_table(
    path: Path, table: dict[str, list[Any]], label_column: str | None
) -> dict[str, list[Any]]:
    label = _column(path, table, (label_column,) if label_column else LABELS, "labels")
    words = [_word(value) for value in table[label]]
    count = len(words)
    named = next((name for name in FILES if name in table), None)
    given = table["image"] if "image" in table else table[_column(path, table, FILES, "files")]
    images = [
        None if word is None else _image(path, row, value)  # rows without a label are left out
        for row, (word, value) in enumerate(zip(words, given, strict=True))
    ]
    if missing := [i for i in images if isinstance(i, Path) and not i.is_file()]:
        raise FileNotFoundError(
            f"{path} names {len(missing):,} files that are not there, the first {missing[0]}; "
            "names are relative to the table's folder"
        )
    person = next((name for name in PERSONS if name in table), None)
    names = table[named] if named else [""] * count
    columns: dict[str, list[Any]] = {
        "image": images,
        "file": [str(name or f"row {row}") for row, name in enumerate(names)],
        "label": words,
        "split": table.get("split", [""] * count),
        "person": table[person] if person else [""] * count,
    }
    return columns | ({"landmarks": table["landmarks"]} if "landmarks" in table else {})


def _word(value: Any) -> str | None:
    """What a cell says; None for an empty one, and for a number that is none."""
    word = "" if value is None or value != value else str(value).strip()
    return word or None


def _image(path: Path, row: int, value: Any) -> Path | bytes:
    """Bytes as they are, a name as a path; of a struct of the datasets library what it has."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if not value or not isinstance(value, (str, bytes)):
        raise ValueError(
            f"{path}, row {row} (from 0), has no image: got {value!r}, wanted the bytes or the "
            "name of a file; leave the row out"
        )
    return path.parent / value if isinstance(value, str) else value


def _column(path: Path, table: dict[str, list[Any]], wanted: Sequence[str], what: str) -> str:
    for name in wanted:
        if name in table:
            return name
    raise ValueError(
        f"{path} has no column of {what} ({' or '.join(wanted)}); it has {', '.join(table)}"
    )


def _csv_columns(path: Path) -> dict[str, list[Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        try:
            names, rows = reader.fieldnames or (), list(reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(
                f"{path} is not a CSV file in UTF-8 ({error}); a spreadsheet saves such as 'CSV "
                "UTF-8'"
            ) from error
    return {name: [row[name] for row in rows] for name in names}


def _parquet_columns(path: Path, label_column: str | None) -> dict[str, list[Any]]:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(
            f"reading {path.name} needs pyarrow: pip install 'facezoo[parquet]'"
        ) from error
    known = {"image", "split", "landmarks", *LABELS, *FILES, *PERSONS, label_column}
    names = [name for name in pq.read_schema(path).names if name in known]
    table = pq.read_table(path, columns=names)
    return {name: table[name].to_pylist() for name in names}


def _points(values: list[Any]) -> Tensor:
    missing = [float("nan")] * 10
    return torch.from_numpy(
        np.array([missing if v is None else v for v in values], np.float32).reshape(-1, 5, 2)
    )


def _split_word(path: Path, value: Any) -> str:
    word = (_word(value) or "").lower()
    word = WORDS.get(word, word)
    if word not in (*SPLITS, ""):
        raise ValueError(f"{path} has the split {value!r}; wanted {', '.join(SPLITS)} or nothing")
    return word


def _share(key: str) -> float:
    digest = hashlib.sha256(f"facezoo:{key}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
