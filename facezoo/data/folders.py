"""Finding the parts of a data set in a folder, and reading its lists, with errors that help."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

MARKS = {
    "raf-db": ("EmoLabel", "basic/EmoLabel"),
    "ferplus": ("FER2013Train", "data/FER2013Train"),
    "affectnet": ("Manually_Annotated_file_lists", "training.csv", "train_set/annotations"),
    "sfew": ("Train/Angry",),
    "sfew-aligned": ("Train_Aligned_Faces", "Train/Train_Aligned_Faces"),
    "ck+": ("cohn-kanade-images",),
}
"""What only the folder of each data set holds."""


def the_one(name: str, root: str | Path, *places: str) -> Path:
    """The one of several places, relative to ``root``, where a part of a data set stands."""
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(
            f"no folder {root}; {name} is not downloaded by facezoo: ask its makers for it, unpack "
            f"it, and name the folder that holds {' or '.join(places)}"
        )
    found = [root / place for place in places if (root / place).exists()]
    if len(found) > 1:
        raise ValueError(
            f"{' and '.join(map(str, found))} are both there, and which one is meant cannot be "
            "told; move the other away"
        )
    if not found:
        raise FileNotFoundError(
            f"{root} has no {' or '.join(places)}, which {name} needs{looks_like(root)}"
        )
    return found[0]


def looks_like(root: str | Path) -> str:
    """A hint at the data set whose folder this may be."""
    others = [
        name for name, marks in MARKS.items() if any((Path(root) / mark).exists() for mark in marks)
    ]
    if (Path(root) / "Image" / "aligned").is_dir():
        others.append("raf-db-aligned")
    return f"; what is there looks like {' or '.join(others)}" if others else ""


def check_files(files: Sequence[Path], listed_in: Path) -> None:
    """Refuse a list that names files which are not there."""
    folders = {file.parent for file in files}
    present = {folder: names_in(folder) for folder in folders if folder.is_dir()}
    missing = [file for file in files if file.name not in present.get(file.parent, ())]
    if missing:
        raise FileNotFoundError(
            f"{listed_in} asks for {len(files):,} files, of which {len(missing):,} are not there, "
            f"the first {missing[0]}; unpack the data set completely"
        )


def names_in(folder: Path) -> set[str]:
    """What a folder holds, without what is hidden."""
    return {path.name for path in shown(folder.iterdir())}


def shown(paths: Iterable[Path]) -> list[Path]:
    """Those that no dot hides, in the order of their names."""
    return sorted(path for path in paths if not path.name.startswith("."))


def word_of(label: str, words: Mapping[str, str | None], where: str) -> str | None:
    """The expression that a numbered label stands for; 3 may be written 3.0000000e+00."""
    try:
        value = float(label)
    except ValueError:
        value = float("nan")
    number = str(int(value)) if value.is_integer() else label
    if number not in words:
        raise ValueError(f"{where} has the label {label!r}; known are {', '.join(words)}")
    return words[number]


def lines_of(path: Path) -> list[list[str]]:
    """Lines of a text file that are not empty, split at white space."""
    return [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def rows_of(path: Path) -> Iterator[list[str]]:
    """Rows of a CSV file, white space around cells taken off."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        for row in csv.reader(file):
            yield [cell.strip() for cell in row]
