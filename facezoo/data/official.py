"""Readers of expression data sets in the folders that their authors distribute.

Nothing is downloaded: request the sets from their authors, and give the folder of the unpacked
set. docs/reference/datasets.md shows the folders. If two places or two label files fit, the reader
raises an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from facezoo.data.affectnet import read_affectnet
from facezoo.data.expressions import (
    ExpressionData,
    check_files,
    in_landmark_order,
    lines_of,
    looks_like,
    shown,
    the_one,
    with_labels,
    word_of,
)
from facezoo.data.ferplus import read_ferplus
from facezoo.errors import UnknownNameError
from facezoo.progress import progress_bar

FOLDS = 10
"""Groups of identities in CK+."""

RAF_DB_LABELS = {
    "1": "surprise",
    "2": "fear",
    "3": "disgust",
    "4": "happiness",
    "5": "sadness",
    "6": "anger",
    "7": "neutral",
}
SFEW_LABELS = {
    "Angry": "anger",
    "Disgust": "disgust",
    "Fear": "fear",
    "Happy": "happiness",
    "Neutral": "neutral",
    "Sad": "sadness",
    "Surprise": "surprise",
}
CK_PLUS_LABELS = {
    "0": "neutral",
    "1": "anger",
    "2": "contempt",
    "3": "disgust",
    "4": "fear",
    "5": "happiness",
    "6": "sadness",
    "7": "surprise",
}


def read_raf_db(root: str | Path, *, aligned: bool = False) -> ExpressionData:
    """Read the single-label subset of RAF-DB (Li et al. 2017): 12,271 training, 3,068 test images.

    Layout and labels: the readme of the set, version 1.1. ``root`` is the folder ``basic``, or the
    folder that holds it. The label list is misspelled ``list_patition_label.txt``; the right
    spelling, which the readme also has, is read too.

    Args:
        aligned: read ``Image/aligned``, 100 x 100 crops, instead of ``Image/original``. Only the
            originals have landmarks: five points by hand in ``Annotation/manual``, which are read
            if that folder exists.

    Raises:
        FileNotFoundError: if something is missing; the message names it.
        ValueError: if a line of the label list is not like ``train_00001.jpg 5``.
    """
    name = "raf-db-aligned" if aligned else "raf-db"
    spellings = ("list_patition_label.txt", "list_partition_label.txt")
    places = [f"{top}EmoLabel/{file}" for top in ("", "basic/") for file in spellings]
    listing = the_one(name, root, *places)
    basic = listing.parent.parent
    folder = the_one(name, basic, "Image/aligned" if aligned else "Image/original")
    files, words, splits = [], [], []
    for number, cells in enumerate(lines_of(listing), 1):
        where = f"line {number} of {listing}"
        if len(cells) != 2 or cells[0].partition("_")[0] not in ("train", "test"):
            raise ValueError(f"{where} must be like 'train_00001.jpg 5', got {' '.join(cells)!r}")
        file = Path(cells[0])
        files.append(folder / (f"{file.stem}_aligned{file.suffix}" if aligned else file))
        words.append(word_of(cells[1], RAF_DB_LABELS, where))
        splits.append(cells[0].partition("_")[0])
    check_files(files, listing)
    manual = basic / "Annotation" / "manual"
    points = _raf_db_landmarks(files, manual) if manual.is_dir() and not aligned else None
    return with_labels(name, files, words, splits, cropped=aligned, landmarks=points)


def _raf_db_landmarks(images: Sequence[Path], folder: Path) -> Tensor:
    """Read the first five lines of each annotation: eyes, nose, mouth corners; (N, 5, 2)."""
    files = [folder / f"{image.stem}_manu_attri.txt" for image in images]
    check_files(files, folder)
    points = torch.full((len(files), 5, 2), float("nan"))
    for row, file in enumerate(progress_bar(files, desc="reading landmarks", unit="file")):
        try:
            values = [[float(cell) for cell in cells] for cells in lines_of(file)[:5]]
            points[row] = torch.tensor(values).view(5, 2)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{file} must begin with five lines 'x y'") from error
    return in_landmark_order(points)


def read_sfew(root: str | Path, *, aligned: bool = False) -> ExpressionData:
    """Read SFEW 2.0 (Dhall et al. 2015): 958 training and 436 validation stills from films.

    Layout: a folder of PNG files per expression in ``Train`` and ``Val``; aligned faces in
    ``Train_Aligned_Faces`` and ``Val_Aligned_Faces`` (or ``Val_Aligned_Faces_new``), which may also
    be inside ``Train`` and ``Val``. The set has no readme; public readers agree on this layout.
    Test labels are not published, so test images are not read.

    Args:
        aligned: read the aligned faces instead of the stills.

    Raises:
        FileNotFoundError: if something is missing; the message names it.
        ValueError: if there is a folder for another expression.
    """
    name = "sfew-aligned" if aligned else "sfew"
    files: list[Path] = []
    words: list[str | None] = []
    splits: list[str] = []
    for top, split in (("Train", "train"), ("Val", "val")):
        plain = [f"{top}_Aligned_Faces", f"{top}_Aligned_Faces_new"]
        places = [*plain, *(f"{top}/{place}" for place in plain)] if aligned else [top]
        folder = the_one(name, root, *places)
        inside = {path.name for path in shown(folder.iterdir()) if path.is_dir()}
        if absent := sorted(SFEW_LABELS.keys() - inside):
            raise FileNotFoundError(f"{folder} has no folder {', '.join(absent)}{looks_like(root)}")
        if unknown := sorted(n for n in inside - SFEW_LABELS.keys() if "Aligned" not in n):
            raise ValueError(
                f"{folder} has folders that are not expressions: {', '.join(unknown)}; expected "
                f"{', '.join(SFEW_LABELS)}"
            )
        for label, word in SFEW_LABELS.items():
            here = shown((folder / label).glob("*.png"))
            files += here
            words += [word] * len(here)
            splits += [split] * len(here)
    return with_labels(name, files, words, splits, cropped=aligned)


def read_ck_plus(root: str | Path) -> ExpressionData:
    """Read CK+ (Lucey et al. 2010) as IPD-FER uses it: 981 images of expressions, 327 neutral.

    In each sequence with an emotion label, the last three frames have the label and the first is
    neutral. Layout and labels: the readme of the set, revised in September 2010:
    ``cohn-kanade-images/S005/001/S005_001_00000011.png`` and, named after the peak frame,
    ``Emotion/S005/001/S005_001_00000011_emotion.txt``.

    ``fold``: the identities of the labeled sequences, sorted by name, are assigned to ten folds in
    turn: the first to fold 0, the eleventh to fold 0 again. The paper only states that folds are
    "by ID"; each identity is in one fold.

    Raises:
        FileNotFoundError: if something is missing; the message names it.
        ValueError: if a label is unknown or a sequence has fewer than four frames.
    """
    images = the_one("ck+", root, "cohn-kanade-images")
    emotion = the_one("ck+", root, "Emotion", "Emotion_labels")
    labels = shown(emotion.glob("*/*/*_emotion.txt"))
    if not labels:
        raise FileNotFoundError(
            f"{emotion} has no file like S005/001/S005_001_00000011_emotion.txt"
        )
    files: list[Path] = []
    words: list[str | None] = []
    for label in labels:
        first, *peak = _ck_plus_frames(label, images / label.parent.relative_to(emotion))
        files += [first, *peak]
        number = "".join(cell for cells in lines_of(label) for cell in cells)
        words += ["neutral"] + [word_of(number, CK_PLUS_LABELS, str(label))] * len(peak)
    identities = [file.parent.parent.name for file in files]
    fold_of = {name: turn % FOLDS for turn, name in enumerate(sorted(set(identities)))}
    return with_labels(
        "ck+",
        files,
        words,
        [""] * len(files),
        identities=identities,
        fold=torch.tensor([fold_of[name] for name in identities]),
    )


def _ck_plus_frames(label: Path, sequence: Path) -> list[Path]:
    """Return the first frame and the last three up to the frame in the name of the label."""
    peak = sequence / f"{label.name.removesuffix('_emotion.txt')}.png"
    frames = [frame for frame in shown(sequence.glob("*.png")) if frame.name <= peak.name]
    if peak not in frames:
        raise FileNotFoundError(f"{label} names {peak}, which does not exist")
    if len(frames) < 4:
        raise ValueError(
            f"{sequence} has {len(frames)} frames, too few for a neutral one and three of the peak"
        )
    return [frames[0], *frames[-3:]]


READERS: dict[str, Callable[[str | Path], ExpressionData]] = {
    "raf-db": read_raf_db,
    "raf-db-aligned": partial(read_raf_db, aligned=True),
    "ferplus": read_ferplus,
    "affectnet": read_affectnet,
    "sfew": read_sfew,
    "sfew-aligned": partial(read_sfew, aligned=True),
    "ck+": read_ck_plus,
}


def read_official(name: str, root: str | Path) -> ExpressionData:
    """Read a data set in its official layout.

    Args:
        name: a key of ``READERS``.

    Raises:
        UnknownNameError: if there is no such data set; the message lists similar names.
        FileNotFoundError: if something is missing, or the folder holds another data set.
        ValueError: if a label or a line is malformed.
    """
    if name not in READERS:
        near = get_close_matches(name.lower(), READERS) or list(READERS)
        raise UnknownNameError(f"no data set named {name!r}; did you mean {' or '.join(near)}?")
    return READERS[name](root)
