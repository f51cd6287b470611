"""Labeled images of a user: a folder per class, or a table in CSV or Parquet."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facezoo.errors import explained_import, warn_once
from facezoo.preprocess.folders import images_in, skipped_message
from facezoo.preprocess.images import ImageSource

LABELS = ("label", "expression", "emotion", "class")
"""Names of the label column, in the order in which they are looked for."""
FILES = ("file", "path", "filename", "file_name")
IDENTITIES = ("identity", "person", "subject")
SPLIT_COLUMNS = ("split", "usage")
SPLITS = ("train", "val", "test")
_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_MORE_NAMES = {
    **_NAMES,
    **dict.fromkeys(("dev", "publictest"), "val"),  # the second is FER2013's
    **dict.fromkeys(("eval", "evaluation", "privatetest"), "test"),
}
"""Names of splits; dev, eval and evaluation as in the datasets library."""
VALIDATION_SHARE = 0.2
"""Share of the images that validates if the source has no validation split."""


@dataclass(frozen=True)
class LabeledImages:
    """Images with a class each; the N rows of all fields agree."""

    name: str
    images: list[ImageSource]
    """Paths, or the bytes of files."""
    labels: Tensor
    """Index in ``classes``, int64, (N,)."""
    classes: tuple[str, ...]
    files: list[str]
    """Names of the images."""
    splits: list[str]
    """``"train"``, ``"val"``, ``"test"``, or empty if the source does not name one."""
    identities: list[str]
    """Name of the person, empty if unknown."""
    landmarks: Tensor | None = None
    """Five points in pixels, NaN if unknown, (N, 5, 2); None if no image has them."""

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, *splits: str) -> Tensor:
        """Return the row numbers of one or more splits, int64, (M,).

        If the source has no validation split, a fifth of the images that are not for testing
        validates: of each class a fifth, and each identity in one split. The choice depends on
        hashes of names, so most images keep their split when others are added. If the source has
        one, rows without a split are for training.

        Raises:
            ValueError: if a split is unknown.
        """
        if unknown := set(splits) - set(SPLITS):
            raise ValueError(f"unknown split {min(unknown)!r}; expected {', '.join(SPLITS)}")
        names = self.splits if "val" in self.splits else self._split_automatically()
        chosen = [row for row, name in enumerate(names) if (name or "train") in splits]
        return torch.tensor(chosen, dtype=torch.int64)

    def _split_automatically(self) -> list[str]:
        groups: dict[tuple[str, str], list[int]] = {}
        for row, (identity, file) in enumerate(zip(self.identities, self.files, strict=True)):
            if self.splits[row] != "test":
                groups.setdefault((identity, "" if identity else file), []).append(row)
        one_hot = torch.nn.functional.one_hot(self.labels, len(self.classes)).double()
        counts = {key: one_hot[rows].sum(0) for key, rows in groups.items()}
        missing = VALIDATION_SHARE * sum(counts.values(), torch.zeros(len(self.classes)))
        names = list(self.splits)
        encoded = {key: f"facezoo:{key}".encode("utf-8", "surrogateescape") for key in groups}
        for key in sorted(groups, key=lambda key: hashlib.sha256(encoded[key]).digest()):
            # Take a group if the classes come closer to their share of validation images.
            if (missing - counts[key]).square().sum() < missing.square().sum():
                missing = missing - counts[key]
                for row in groups[key]:
                    names[row] = "val"
        return [name or "train" for name in names]


def read_labeled(
    source: str | os.PathLike[str],
    *,
    label_column: str | None = None,
    classes: Sequence[str | int] | None = None,
    exclude: str | os.PathLike[str] | None = None,
) -> LabeledImages:
    """Read images and their classes.

    Args:
        source: one of

            - a folder with a folder of images per class, or with ``train``, ``val`` and ``test``
              folders of these; hidden files and folders are ignored. Each class folder for
              training needs an image; others without one are named in a warning;
            - a ``.csv`` file with a column ``file`` (relative to it) and a label column;
            - a ``.parquet`` file with a column ``image`` (bytes, paths, or the structs of the
              datasets library) or ``file``, and a label column.

            Tables may also have the columns ``split`` (or ``Usage``), ``identity`` and, in
            Parquet, ``landmarks`` (ten numbers x, y in pixels). Class names that the datasets
            library stores in a Parquet file are used. Rows without a label, and rows with the
            label -1 among whole numbers, are left out.
        label_column: label column of a table; None for the first of ``LABELS`` in the table.
        classes: names or whole numbers of the classes to use, in this order; None for all: in the
            order of the datasets library, else sorted by name, or by number if all are whole
            numbers.
        exclude: folder in the source that is neither a class nor a split, such as an output.

    Raises:
        FileNotFoundError: if the source, or a file that a table names, does not exist.
        ImportError: if the source is a Parquet file and pyarrow is not installed.
        ValueError: if the source has fewer than two classes, lacks a column, has a row with a
            label and no image, or is a folder and a column is named, or a class folder for training
            has no image.
    """
    if isinstance(classes, str):
        raise ValueError(f"classes must be a list of names, got the text {classes!r}")
    names = None
    if classes is not None:
        names = tuple(word if isinstance(word, str) else _word(word) or "" for word in classes)
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"no file or folder {path}; give a folder, .csv or .parquet file")
    suffix = path.suffix.lower()
    if path.is_dir():
        if label_column is not None:
            raise ValueError(
                f"{path} is a folder, and its labels are the names of the folders in it; leave out "
                f"the column {label_column!r}, or give a table"
            )
        columns = _from_folder(path, names, None if exclude is None else Path(exclude).resolve())
    elif suffix in (".csv", ".parquet"):
        table = _csv_columns(path) if suffix == ".csv" else _parquet_columns(path, label_column)
        columns = _from_table(path, table, label_column)
    else:
        raise ValueError(f"labels come from a folder, .csv or .parquet file, got {str(path)!r}")
    return _labeled(path, columns, names)


def _labeled(
    path: Path, columns: Mapping[str, list[Any]], classes: tuple[str, ...] | None
) -> LabeledImages:
    """Keep the rows whose label is among the classes."""
    words = columns["label"]
    present, order = {word for word in words if word is not None}, columns["class"]
    known = [word for word in order if word in present] + sorted(present - set(order))
    if all(re.fullmatch(r"-?\d+", word) for word in present):
        known = sorted(present, key=lambda word: (int(word), word))
    requested = tuple(known) if classes is None else classes
    if unknown := [word for word in requested if word not in known]:
        raise ValueError(f"{path} has no class {unknown[0]!r}; it has {', '.join(known) or 'none'}")
    if len(set(requested)) < 2:
        raise ValueError(
            f"{path} must hold two classes or more, got {', '.join(requested) or 'none'}; a folder "
            "needs one folder per class (give the folder that holds them), a table a label column"
        )
    spellings = Counter(word.casefold() for word in requested)
    if same := [word for word in requested if spellings[word.casefold()] > 1]:
        raise ValueError(
            f"{path} has classes that differ only in upper and lower case ({', '.join(same)}); "
            "rename one, or list the classes to use"
        )
    rows = [row for row, word in enumerate(words) if word in requested]
    points = columns.get("landmarks")
    return LabeledImages(
        name=path.name,
        images=[columns["image"][row] for row in rows],
        labels=torch.tensor([requested.index(words[row] or "") for row in rows]),
        classes=requested,
        files=[columns["file"][row] for row in rows],
        splits=[_split_name(path, columns["split"][row]) for row in rows],
        identities=[_word(columns["identity"][row]) or "" for row in rows],
        landmarks=None if points is None else _points([points[row] for row in rows]),
    )


def _from_folder(
    root: Path, classes: Sequence[str] | None, exclude: Path | None
) -> dict[str, list[Any]]:
    top = root
    folders = [folder for folder in _folders_in(top) if folder.resolve() != exclude]
    if len(folders) == 1 and any(_as_split(inner, _NAMES) for inner in _folders_in(folders[0])):
        top, folders = folders[0], _folders_in(folders[0])
    by_split = {top: ""}
    if any(_as_split(folder, _NAMES) for folder in folders):
        by_split = {folder: _as_split(folder, _MORE_NAMES) for folder in folders}
        if other := [folder.name for folder, split in by_split.items() if not split]:
            raise ValueError(
                f"{top} has folders of splits next to the folder {other[0]!r}; move it, or rename "
                "it to train, val or test"
            )
    if loose := [folder / n for folder in {top, *by_split} for n in images_in(folder, False)[0]]:
        warn_once(
            f"{len(loose):,} images are in no class folder and are left out, such as {min(loose)}"
        )
    columns: dict[str, list[Any]] = {
        name: [] for name in ("image", "file", "label", "split", "identity", "class")
    }
    skipped: list[str] = []
    empty: list[Path] = []
    lacking: list[Path] = []
    for folder, split in by_split.items():
        inside = [inner for inner in _folders_in(folder) if inner.resolve() != exclude]
        empty += [folder] if split and not inside else []
        for inner in inside:
            images, unknown = images_in(inner)
            if not images and (classes is None or inner.name in classes):
                (lacking if split in ("", "train") else empty).append(inner)
            skipped += [f"{inner.relative_to(root).as_posix()}/{name}" for name in unknown]
            for file in (inner / name for name in images):
                values = (file, file.relative_to(root).as_posix(), inner.name, split, "")
                for name, value in zip(columns, values, strict=False):
                    columns[name].append(value)
    if skipped:
        warn_once(f"{root}: {skipped_message(skipped)}")
    if lacking:
        raise ValueError(
            f"{root} has class folders without an image: {_listed(lacking, root)}; add images, "
            "remove these folders, or list the classes to use"
        )
    if empty:
        warn_once(f"{root} has folders without an image: {_listed(empty, root)}")
    return columns


def _listed(folders: Sequence[Path], root: Path) -> str:
    return ", ".join(folder.relative_to(root).as_posix() for folder in folders)


def _folders_in(folder: Path) -> list[Path]:
    """Return the subfolders, without hidden ones and those of macOS archives (__MACOSX)."""
    inside = (path for path in folder.iterdir() if path.is_dir())
    return sorted(path for path in inside if not path.name.startswith((".", "__")))


def _as_split(folder: Path, names: Mapping[str, str]) -> str:
    """Return the split that a folder name means, such as training_set; empty if none."""
    return names.get(re.sub(r"[ _-]?set$", "", folder.name.lower()), "")


def _from_table(
    path: Path, table: Mapping[str, list[Any]], label_column: str | None
) -> dict[str, list[Any]]:
    label = _column(table, (label_column,) if label_column else LABELS)
    images, named = _column(table, ("image", *FILES)), _column(table, FILES)
    if label is None or images is None:
        kind, names = "files", tuple[str, ...](("image", *FILES))
        if label is None:
            kind, names = "labels", (label_column,) if label_column else LABELS
        raise ValueError(
            f"{path} has no column of {kind} ({' or '.join(names)}); it has "
            f"{', '.join(name for name in table if not name.startswith('classes of '))}"
        )
    order = table.get(f"classes of {label}", [])
    words = _words(path, table[label], order)
    count = len(words)
    sources = [
        None if word is None else _image(path, row, value)  # rows without a label are left out
        for row, (word, value) in enumerate(zip(words, table[images], strict=True))
    ]
    if missing := [i for i in sources if isinstance(i, Path) and not i.is_file()]:
        raise FileNotFoundError(
            f"{path} names {len(missing):,} files that do not exist, the first {missing[0]}; "
            "names are relative to the table's folder"
        )
    files = table[named] if named else [""] * count
    columns = {name: [""] * count for name in ("split", "identity")}
    for name, names in (("split", SPLIT_COLUMNS), ("identity", IDENTITIES)):
        if column := _column(table, names):
            columns[name] = table[column]
    columns |= {"landmarks": table["landmarks"]} if "landmarks" in table else {}
    files = [str(name or f"row {row}") for row, name in enumerate(files)]
    return {**columns, "image": sources, "file": files, "label": words, "class": order}


def _column(table: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Return the column with the first of these names, in upper or lower case; None if none."""
    by_name = {column.strip().lower(): column for column in table}
    return next((by_name[name.lower()] for name in names if name.lower() in by_name), None)


def _words(path: Path, values: Sequence[Any], order: Sequence[str]) -> list[str | None]:
    """Return the labels as words; None for rows without a label."""
    words = [_word(value) for value in values]
    numbers = all(re.fullmatch(r"-?\d+", word) for word in words if word is not None)
    if numbers and "-1" in words:
        warn_once(f"{path}: {words.count('-1'):,} rows have the label -1 (none) and are left out")
        words = [None if word == "-1" else word for word in words]
    if numbers and order:
        words = [None if word is None else order[int(word)] for word in words]
    return words


def _word(value: Any) -> str | None:
    """Return a cell as text, whole numbers without decimals; None for an empty cell or NaN."""
    if value != value:  # NaN
        return None
    word = "" if value is None else str(value).strip()
    return re.sub(r"^(-?\d+)\.0+$", r"\1", word) or None


def _image(path: Path, row: int, value: Any) -> Path | bytes:
    """Return bytes unchanged, a path relative to the table's folder, or either of a struct."""
    if isinstance(value, dict):  # an Image of the datasets library
        value = value.get("bytes") or value.get("path")
    if not value or not isinstance(value, (str, bytes)):
        raise ValueError(
            f"{path}, row {row} (from 0), has no image: got {value!r}, expected the bytes or the "
            "path of a file; leave the row out"
        )
    return path.parent / value.strip() if isinstance(value, str) else value


def _csv_columns(path: Path) -> dict[str, list[Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        header = text.partition("\n")[0]
        delimiter = next((mark for mark in ",;\t" if mark in header), ",")
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        names, rows = reader.fieldnames or (), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{path} is not a CSV file in UTF-8 ({error}); save it as 'CSV UTF-8'"
        ) from error
    return {name: [row[name] for row in rows] for name in names if name != "landmarks"}


def _parquet_columns(path: Path, label_column: str | None) -> dict[str, list[Any]]:
    """Return the columns, and the class names of the datasets library as ``classes of COLUMN``."""
    with explained_import(f"reading {path.name} needs pyarrow: pip install 'facezoo[parquet]'"):
        import pyarrow.parquet as pq
    known = {"image", "landmarks", *LABELS, *FILES, *IDENTITIES, *SPLIT_COLUMNS}
    names = pq.read_schema(path).names
    used = [name for name in names if name == label_column or name.lower() in known]
    table = pq.read_table(path, columns=used)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    metadata = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    for name, feature in metadata.get("info", {}).get("features", {}).items():
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            columns[f"classes of {name}"] = feature.get("names") or []
    return columns


def _points(values: list[Any]) -> Tensor:
    missing = [float("nan")] * 10
    return torch.from_numpy(
        np.array([missing if v is None else v for v in values], np.float32).reshape(-1, 5, 2)
    )


def _split_name(path: Path, value: Any) -> str:
    word = (_word(value) or "").lower()
    if word and word not in _MORE_NAMES:
        raise ValueError(
            f"{path} has the split {value!r}; expected {', '.join(SPLITS)} or an empty cell"
        )
    return _MORE_NAMES.get(word, "")
