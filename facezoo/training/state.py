"""Random numbers, batches, saved states and logs of a run."""

from __future__ import annotations

import csv
from operator import index
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def generator(seed: int, *path: int) -> torch.Generator:
    """Return the random generator of one place in a run, such as (epoch, step).

    Every place has its own, so a resumed run gets the same numbers as an uninterrupted one.
    """
    value = index(seed)  # an int of any size, also from a scalar of numpy
    for part in path:
        value = (value * 1_000_003 + part + 1) % (2**63)
    return torch.Generator().manual_seed(value)


def batches(count: int, size: int, seed: int, epoch: int) -> list[Tensor]:
    """Return the shuffled row numbers of an epoch in batches; a short last batch is dropped.

    Raises:
        ValueError: if there are fewer rows than one batch.
    """
    if count < size:
        raise ValueError(f"there are {count} rows to train on, too few for a batch of {size}")
    order = torch.randperm(count, generator=generator(seed, epoch))
    return list(order[: count // size * size].split(size))


def save_state(path: Path, **state: Any) -> None:
    """Write a state; an interruption leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load_state(path: Path) -> dict[str, Any] | None:
    """Return the state that ``save_state`` wrote, or None if the file does not exist."""
    return torch.load(path, weights_only=True, map_location="cpu") if path.is_file() else None


def log_row(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a CSV file, with a header if the file is new.

    The first column is the place in the run. Rows from this place on are removed first: an
    interrupted run wrote them after its last saved state.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    place = next(iter(row.values()))
    lines = lines[:1] + [line for line in lines[1:] if float(line.partition(",")[0]) < place]
    with path.open("w", newline="") as file:
        file.writelines(lines)
        writer = csv.DictWriter(file, fieldnames=list(row), lineterminator="\n")
        if not lines:
            writer.writeheader()
        writer.writerow(row)
