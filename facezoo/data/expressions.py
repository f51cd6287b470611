"""Expression data sets in memory, and helpers to read their official folders."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from facezoo.results import EXPRESSIONS

BASIC = EXPRESSIONS[:7]
"""The seven classes of RAF-DB, SFEW and of AffectNet in IPD-FER: all but contempt."""
MARKS = {
    "raf-db": ("EmoLabel", "basic/EmoLabel"),
    "ferplus": ("FER2013Train", "data/FER2013Train"),
    "affectnet": ("Manually_Annotated_file_lists", "training.csv", "train_set/annotations"),
    "sfew": ("Train/Angry",),
    "sfew-aligned": ("Train_Aligned_Faces", "Train/Train_Aligned_Faces"),
    "ck+": ("cohn-kanade-images",),
}
"""Paths that only the folder of each data set has."""


@dataclass(frozen=True)
class ExpressionData:
    """Images of a data set with their labels; the N rows of all fields agree."""

    name: str
    files: list[Path]
    labels: Tensor
    """Index in ``EXPRESSIONS``, -1 for no label, int64, (N,)."""
    distributions: Tensor
    """Probabilities over ``EXPRESSIONS``, from the votes if the set has them, else 1 for the label;
    zero without a label, (N, 8)."""
    splits: list[str]
    """``"train"``, ``"val"`` or ``"test"``; empty if the set has no splits."""
    identities: list[str]
    """Identities, empty if unknown."""
    cropped: bool
    """True if each image shows a single face that fills it."""
    landmarks: Tensor | None = None
    """Five points in the order of ``LANDMARK_NAMES``, pixels of the image, NaN if unknown,
    (N, 5, 2); None if the set has none."""
    boxes: Tensor | None = None
    """x0, y0, x1, y1 in pixels, NaN if unknown, (N, 4); None if the set has none."""
    fold: Tensor | None = None
    """Fold of each image, with each identity in one fold, int64, (N,); None without folds."""

    def __len__(self) -> int:
        return len(self.files)

    def rows(self, split: str | None = None, classes: Sequence[str] = EXPRESSIONS) -> Tensor:
        """Return the rows with a label among some classes.

        Args:
            split: one of ``splits``, or None for all.
            classes: words of ``EXPRESSIONS``, such as ``BASIC``.

        Returns:
            Row numbers, int64, (M,).

        Raises:
            ValueError: if there is no such split or class.
        """
        if split is not None and split not in self.splits:
            known = sorted(set(self.splits) - {""}) or ["none"]
            raise ValueError(f"{self.name} has no split {split!r}; it has {', '.join(known)}")
        if unknown := [word for word in classes if word not in EXPRESSIONS]:
            raise ValueError(f"{unknown[0]!r} is not among {', '.join(EXPRESSIONS)}")
        chosen = torch.isin(self.labels, torch.tensor([EXPRESSIONS.index(c) for c in classes]))
        if split is not None:
            chosen &= torch.tensor([s == split for s in self.splits])
        return chosen.nonzero()[:, 0]


def with_labels(
    name: str,
    files: list[Path],
    words: Sequence[str | None],
    splits: list[str],
    *,
    identities: list[str] | None = None,
    cropped: bool = False,
    landmarks: Tensor | None = None,
    boxes: Tensor | None = None,
    fold: Tensor | None = None,
) -> ExpressionData:
    """Return a data set with one word of ``EXPRESSIONS``, or None, for each image."""
    labels = torch.tensor([-1 if word is None else EXPRESSIONS.index(word) for word in words])
    one_hot = F.one_hot(labels.clamp(min=0), len(EXPRESSIONS)).float() * (labels >= 0)[:, None]
    identities = identities or [""] * len(files)
    return ExpressionData(
        name, files, labels, one_hot, splits, identities, cropped, landmarks, boxes, fold
    )


def in_landmark_order(points: Tensor) -> Tensor:
    """Sort eyes and mouth corners into the order of ``LANDMARK_NAMES``.

    The subject's right eye is left in the image when the face is upright. A set may list the eyes
    and the mouth corners in either order.

    Args:
        points: two eyes, nose tip, two mouth corners, (N, 5, 2).

    Returns:
        The same points, (N, 5, 2).
    """
    down = points[:, 3:].mean(1) - points[:, :2].mean(1)
    ordered = points.clone()
    for first, second in ((0, 1), (3, 4)):
        across = points[:, second] - points[:, first]
        is_swapped = across[:, 0] * down[:, 1] < across[:, 1] * down[:, 0]
        ordered[is_swapped, first] = points[is_swapped, second]
        ordered[is_swapped, second] = points[is_swapped, first]
    return ordered


def the_one(name: str, root: str | Path, *places: str) -> Path:
    """Return the only one of several paths below ``root`` that exists.

    Raises:
        FileNotFoundError: if none exists.
        ValueError: if several exist.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(
            f"no folder {root}; facezoo does not download {name}: request it from its authors, "
            f"unpack it, and give the folder that holds {' or '.join(places)}"
        )
    existing = [root / place for place in places if (root / place).exists()]
    if len(existing) > 1:
        raise ValueError(
            f"both {' and '.join(map(str, existing))} exist, and only one is expected; move the "
            "other away"
        )
    if not existing:
        raise FileNotFoundError(
            f"{root} has no {' or '.join(places)}, which {name} needs{looks_like(root)}"
        )
    return existing[0]


def looks_like(root: str | Path) -> str:
    """Return a hint at the data set that the folder may hold."""
    others = [
        name for name, marks in MARKS.items() if any((Path(root) / mark).exists() for mark in marks)
    ]
    if (Path(root) / "Image" / "aligned").is_dir():
        others.append("raf-db-aligned")
    return f"; the folder looks like {' or '.join(others)}" if others else ""


def check_files(files: Sequence[Path], listed_in: Path) -> None:
    """Raise an error if listed files do not exist."""
    folders = {file.parent for file in files}
    present = {folder: names_in(folder) for folder in folders if folder.is_dir()}
    missing = [file for file in files if file.name not in present.get(file.parent, ())]
    if missing:
        raise FileNotFoundError(
            f"{listed_in} lists {len(files):,} files, and {len(missing):,} do not exist, the first "
            f"{missing[0]}; unpack the data set completely"
        )


def names_in(folder: Path) -> set[str]:
    """Return the names in a folder that are not hidden."""
    return {path.name for path in shown(folder.iterdir())}


def shown(paths: Iterable[Path]) -> list[Path]:
    """Return the paths that are not hidden, sorted by name."""
    return sorted(path for path in paths if not path.name.startswith("."))


def word_of(label: str, words: Mapping[str, str | None], where: str) -> str | None:
    """Return the expression of a numeric label; 3 may be written 3.0000000e+00."""
    try:
        value = float(label)
    except ValueError:
        value = float("nan")
    number = str(int(value)) if value.is_integer() else label
    if number not in words:
        raise ValueError(f"{where} has the label {label!r}; expected {', '.join(words)}")
    return words[number]


def lines_of(path: Path) -> list[list[str]]:
    """Return the words of each line of a text file, without empty lines."""
    return [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def rows_of(path: Path) -> Iterator[list[str]]:
    """Yield the rows of a CSV file with stripped cells."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        for row in csv.reader(file):
            yield [cell.strip() for cell in row]
