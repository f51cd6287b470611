"""Reader of FER+: the images of FER2013 with ten votes each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from facezoo.data.expressions import ExpressionData, check_files, rows_of, the_one
from facezoo.data.packs import label_distributions
from facezoo.results import EXPRESSIONS

FOLDERS = {
    "Training": ("train", "FER2013Train"),
    "PublicTest": ("val", "FER2013Valid"),
    "PrivateTest": ("test", "FER2013Test"),
}


def read_ferplus(root: str | Path) -> ExpressionData:
    """Read FER+ (Barsoum et al. 2016): FER2013's images with ten votes each.

    Layout: ``README.md`` and ``src/generate_training_data.py`` of microsoft/FERPlus. ``root`` holds
    ``FER2013Train``, ``FER2013Valid`` and ``FER2013Test``, or a folder ``data`` with them. The
    votes come from ``fer2013new.csv`` in ``root``, else from ``label.csv`` in each of the three.
    The ``label.csv`` files of that repository have other votes for some images; its script
    replaces them. If both kinds exist and differ, the reader raises an error.

    Labels follow the majority rule of that repository. If several rows name the same image, the
    last one counts, because the script leaves its pixels in the file.

    Raises:
        FileNotFoundError: if something is missing; the message names it.
        ValueError: if a row of votes is malformed, or the label files differ.
        ModuleNotFoundError: if the extra ``[parquet]`` is not installed.
    """
    base = the_one("ferplus", root, "FER2013Train", "data/FER2013Train").parent
    for _, folder in FOLDERS.values():
        the_one("ferplus", base, folder)
    whole, parts = Path(root) / "fer2013new.csv", base / "FER2013Train" / "label.csv"
    if not whole.is_file() and not parts.is_file():
        raise FileNotFoundError(
            f"{root} has neither fer2013new.csv nor FER2013Train/label.csv; FER+ needs its votes, "
            "which are in the repository microsoft/FERPlus"
        )
    votes = _whole_votes(whole, base) if whole.is_file() else _part_votes(base)
    if whole.is_file() and parts.is_file():
        _check_same_votes(votes, _part_votes(base), whole)
    files = list(votes)
    check_files(files, whole if whole.is_file() else base)
    split_of = {folder: split for split, folder in FOLDERS.values()}
    import pyarrow as pa

    counts = torch.tensor(list(votes.values()))
    return ExpressionData(
        name="ferplus",
        files=files,
        labels=majority_of_votes(counts),
        distributions=label_distributions(pa.table({"votes": counts.tolist()})),
        splits=[split_of[file.parent.name] for file in files],
        identities=[""] * len(files),
        cropped=True,
    )


def majority_of_votes(votes: Tensor) -> Tensor:
    """Compute labels by the majority rule of FER+.

    A class with a single vote loses it as an outlier. The class with most votes wins if it has
    more than half of the rest. Otherwise, or if "unknown" or "not a face" wins, there is no label.
    Source: ``src/ferplus.py`` of microsoft/FERPlus, mode "majority".

    Args:
        votes: votes for ``EXPRESSIONS``, unknown and not a face, (N, 10).

    Returns:
        Index in ``EXPRESSIONS`` or -1, int64, (N,).
    """
    counted = torch.where(votes > 1, votes, 0)
    most, winner = counted.max(1)
    clear = (2 * most > counted.sum(1)) & (winner < len(EXPRESSIONS))
    return torch.where(clear, winner, -1)


def _whole_votes(path: Path, base: Path) -> dict[Path, list[int]]:
    """Read the votes of each image from ``fer2013new.csv``; rows without a name have no image."""
    votes = {}
    for number, row in enumerate(rows_of(path), 1):
        where = f"line {number} of {path}"
        if row[:1] == ["Usage"]:
            continue
        if len(row) != 12 or row[0] not in FOLDERS:
            raise ValueError(f"{where} must be a usage, an image name and ten votes, got {row}")
        if row[1]:
            votes[base / FOLDERS[row[0]][1] / row[1]] = _ten_votes(row[2:], where)
    return votes


def _part_votes(base: Path) -> dict[Path, list[int]]:
    """Read the votes of each image from each ``label.csv``: name, sometimes a box, ten votes."""
    votes = {}
    for _, folder in FOLDERS.values():
        path = the_one("ferplus", base, f"{folder}/label.csv")
        for number, row in enumerate(rows_of(path), 1):
            where = f"line {number} of {path}"
            if len(row) not in (11, 12):
                raise ValueError(f"{where} must be an image name and ten votes, got {row}")
            votes[base / folder / row[0]] = _ten_votes(row[-10:], where)
    return votes


def _ten_votes(cells: Sequence[str], where: str) -> list[int]:
    try:
        return [int(cell) for cell in cells]
    except ValueError as error:
        raise ValueError(f"{where} must have whole numbers of votes, got {cells}") from error


def _check_same_votes(
    whole: dict[Path, list[int]], parts: dict[Path, list[int]], path: Path
) -> None:
    names = whole.keys() | parts.keys()
    if differing := sorted(n for n in names if whole.get(n) != parts.get(n)):
        raise ValueError(
            f"{path.name} and the label.csv files differ in the votes of {len(differing):,} of "
            f"{len(names):,} images, the first {differing[0].name}; move away those that "
            "are wrong (IPD-FER counts its training faces by fer2013new.csv)"
        )
