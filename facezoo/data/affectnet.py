"""Reader of AffectNet: the manually annotated images in two releases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from facezoo.data.expressions import (
    ExpressionData,
    check_files,
    in_landmark_order,
    names_in,
    rows_of,
    shown,
    the_one,
    with_labels,
    word_of,
)
from facezoo.progress import progress_bar

LABELS: dict[str, str | None] = {
    "0": "neutral",
    "1": "happiness",
    "2": "sadness",
    "3": "surprise",
    "4": "fear",
    "5": "disgust",
    "6": "anger",
    "7": "contempt",
    "8": None,  # none
    "9": None,  # uncertain
    "10": None,  # no face
}
COLUMNS = (
    *("subDirectory_filePath", "face_x", "face_y", "face_width", "face_height"),
    *("facial_landmarks", "expression", "valence", "arousal"),
)


def read_affectnet(root: str | Path) -> ExpressionData:
    """Read AffectNet (Mollahosseini et al. 2017), the manually annotated images.

    - The full release has ``training.csv`` and ``validation.csv``, in ``root`` or in
      ``Manually_Annotated_file_lists``, with the columns ``COLUMNS``, and the images in
      ``Manually_Annotated_Images`` or ``Manually_Annotated/Manually_Annotated_Images``. It has a
      box and 68 landmarks (in the order of iBUG); five of them are read.
    - The reduced release has ``train_set`` and ``val_set``, each with ``images/N.jpg`` and
      ``annotations/N_exp.npy``. Its landmarks are not read.

    Public readers of the two releases agree on these layouts. "None", "uncertain" and "no face"
    mean no label. Contempt is a label; the IPD-FER paper leaves it out:
    ``data.rows("train", BASIC)``.

    Raises:
        FileNotFoundError: if something is missing; the message names it.
        ValueError: if a row is malformed or its label is unknown.
    """
    lists = ("Manually_Annotated_file_lists/training.csv", "training.csv")
    path = the_one("affectnet", root, *lists, "train_set/annotations")
    if path.name == "annotations":
        return _read_affectnet_folders(path.parent.parent)
    places = ("Manually_Annotated_Images", "Manually_Annotated/Manually_Annotated_Images")
    return _read_affectnet_lists(path.parent, the_one("affectnet", root, *places))


def _read_affectnet_lists(lists: Path, images: Path) -> ExpressionData:
    files: list[Path] = []
    words: list[str | None] = []
    splits: list[str] = []
    boxes: list[list[float]] = []
    points: list[list[float]] = []
    for listing, split in (("training.csv", "train"), ("validation.csv", "val")):
        path = the_one("affectnet", lists, listing)
        before = len(files)
        for number, row in enumerate(rows_of(path), 1):
            where = f"line {number} of {path}"
            if tuple(row) == COLUMNS:
                continue
            if len(row) != len(COLUMNS):
                columns = ", ".join(COLUMNS)
                raise ValueError(f"{where} must have the columns {columns}, got {row}")
            files.append(images / row[0])
            words.append(word_of(row[6], LABELS, where))
            splits.append(split)
            x, y, width, height = _numbers(row[1:5], 4)
            box = [x, y, x + width, y + height]  # the width is -1 without a face
            boxes.append(box if width > 0 else [float("nan")] * 4)
            points.append(_five_of_68(_numbers(row[5].split(";"), 136)))
        check_files(files[before:], path)
    landmarks = in_landmark_order(torch.tensor(points).view(-1, 5, 2))
    return with_labels(
        "affectnet", files, words, splits, landmarks=landmarks, boxes=torch.tensor(boxes)
    )


def _numbers(cells: Sequence[str], count: int) -> list[float]:
    """Return finite numbers, or NaN for all if one is missing or not finite."""
    try:
        values = [float(cell) for cell in cells]
    except ValueError:
        values = []
    return values if len(values) == count and np.isfinite(values).all() else [float("nan")] * count


def _five_of_68(values: Sequence[float]) -> list[float]:
    """Return eye centers, nose tip and mouth corners, x and y, of the 68 points of iBUG."""
    points = np.array(values).reshape(68, 2)
    eyes = points[36:42].mean(0), points[42:48].mean(0)
    return np.concatenate([*eyes, points[30], points[48], points[54]]).tolist()


def _read_affectnet_folders(root: Path) -> ExpressionData:
    files: list[Path] = []
    words: list[str | None] = []
    splits: list[str] = []
    for folder, split in (("train_set", "train"), ("val_set", "val")):
        annotations = the_one("affectnet", root, f"{folder}/annotations")
        images = the_one("affectnet", root, f"{folder}/images")
        labels = shown(annotations.glob("*_exp.npy"))
        here = [images / f"{path.name.removesuffix('_exp.npy')}.jpg" for path in labels]
        check_files(here, annotations)
        if over := sorted(names_in(images) - {file.name for file in here}):
            raise FileNotFoundError(
                f"{len(over):,} images of {images} have no label *_exp.npy in {annotations}, the "
                f"first {over[0]}; unpack the annotations completely"
            )
        for path in progress_bar(labels, desc=f"reading labels of {folder}", unit="file"):
            words.append(word_of(str(np.load(path).item()), LABELS, str(path)))
        files += here
        splits += [split] * len(here)
    return with_labels("affectnet", files, words, splits)
