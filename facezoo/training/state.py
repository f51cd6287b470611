"""State."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def generator(seed: int, *path: int) -> torch.Generator:
    """A random generator for one place in a run, such as (epoch, step).

    Every step has its own, so a resumed run draws what the uninterrupted one would have drawn.
    """
    value = seed
    for part in path:
        value = (value * 1_000_003 + part + 1) % (2**63)
    return torch.Generator().manual_seed(value)


def batches(count: int, size: int, seed: int, epoch: int) -> list[Tensor]:
    """Shuffled row indices of one epoch in batches of ``size``; the short last one is dropped.

    Raises:
        ValueError: if there are too few rows for one batch.
    """
    if count < size:
        raise ValueError(f"there are {count} rows to train on, too few for a batch of {size}")
    order = torch.randperm(count, generator=generator(seed, epoch))
    return list(order[: count // size * size].split(size))


def save_state(path: Path, **state: Any) -> None:
    """Write the state of a run so that an interruption leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load_state(path: Path) -> dict[str, Any] | None:
    """The state that ``save_state`` wrote, or None if there is none."""
    return torch.load(path, weights_only=True, map_location="cpu") if path.is_file() else None


def log_row(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a CSV file, with a header if the file is new.

    The first column is the row's place in the run. Rows from this place on are those of a run that
    was interrupted after it wrote them and before it saved its state; they go.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists() or not path.stat().st_size
    if not fresh:
        with path.open(newline="") as file:
            header, *lines = file.readlines()
        place = next(iter(row.values()))
        before = [line for line in lines if float(line.partition(",")[0]) < place]
        if len(before) < len(lines):
            with path.open("w", newline="") as file:
                file.writelines([header, *before])
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if fresh:
            writer.writeheader()
        writer.writerow(row)
