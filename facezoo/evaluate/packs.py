"""Evaluation data: the splits of the packs, with labels, identities and yaw."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from facezoo.data.packs import check_packs, majority_labels, read_pack, yaw_column
from facezoo.evaluate.verification import Pairs, read_pairs
from facezoo.results import EXPRESSIONS

if TYPE_CHECKING:
    import pyarrow as pa

PAIRS = "lfw_pairs_val.csv"
PACKS = ("ferplus.parquet", "lfw.parquet", "london_expr.parquet", PAIRS)
FERPLUS_TRAIN, FERPLUS, LFW_TRAIN, LFW, LONDON = SPLITS = (
    "FER+ train",
    "FER+ test",
    "LFW train",
    "LFW val",
    "London",
)

PROTOCOLS = (FERPLUS, LFW, LONDON)
"""Splits on which expressions are classified."""
NEUTRAL_OR_HAPPY = ("neutral", "happiness")
"""The two classes whose labels are reliable on LFW and the London set."""
BY_WAY = ", by way of "
"""In training data that another model saw: between the data and this model."""
TRAINING_ROWS = 8000
"""Rows of FER+ train that are used, the first with a label."""


@dataclass(frozen=True)
class Split:
    """Rows of a pack."""

    table: pa.Table
    labels: Tensor
    """Index in ``EXPRESSIONS``, -1 for no label, int64, (N,)."""
    identities: Tensor | None
    """The same number for the same identity in every split, int64, (N,); None if unknown."""
    yaw_deg: Tensor
    """NaN where unknown, (N,)."""

    @cached_property
    def files(self) -> list[str]:
        """File names, N."""
        return self.table["file"].to_pylist()

    def rows_with(self, words: tuple[str, ...]) -> Tensor:
        """Find the rows that have one of these expressions, (R,)."""
        classes = torch.tensor([EXPRESSIONS.index(word) for word in words])
        return torch.isin(self.labels, classes).nonzero()[:, 0]

    @cached_property
    def digest(self) -> str:
        """Digest of what features depend on: the images and the landmarks in them."""
        digest = hashlib.sha256(repr(self.table["landmarks"].to_pylist()).encode())
        for image in self.table["image"]:
            digest.update(hashlib.sha256(image.as_py()).digest())
        return digest.hexdigest()


@dataclass(frozen=True)
class Packs:
    """All evaluation data."""

    splits: dict[str, Split]
    pairs: Pairs

    @classmethod
    def read(cls, folder: Path) -> Packs:
        """Read the packs of a folder.

        Raises:
            FileNotFoundError: if files are missing.
        """
        check_packs(folder, *PACKS)
        ferplus, lfw = folder / "ferplus.parquet", folder / "lfw.parquet"
        tables = {
            FERPLUS_TRAIN: _labeled(read_pack(ferplus, "train")).slice(0, TRAINING_ROWS),
            FERPLUS: _labeled(read_pack(ferplus, "test")),
            LFW_TRAIN: read_pack(lfw, "train"),
            LFW: read_pack(lfw, "val"),
            LONDON: read_pack(folder / "london_expr.parquet").sort_by("identity"),
        }
        names = {
            key: table["identity"].to_pylist()
            for key, table in tables.items()
            if "identity" in table.column_names
        }
        every = sorted({name for part in names.values() for name in part})
        number = {name: index for index, name in enumerate(every)}
        identities = {k: torch.tensor([number[n] for n in part]) for k, part in names.items()}
        splits = {}
        for key, table in tables.items():
            unknown = torch.full((len(table),), float("nan"))
            yaw_deg = yaw_column(table) if "yaw" in table.column_names else unknown
            splits[key] = Split(table, majority_labels(table), identities.get(key), yaw_deg)
        return cls(splits, read_pairs(folder / PAIRS))

    def description(self) -> dict[str, str]:
        """Describe the data by split: number of images and a digest of their names."""
        return {
            key: f"{len(split.files)} images, "
            + hashlib.sha256("\n".join(split.files).encode()).hexdigest()[:12]
            for key, split in self.splits.items()
        }


def _labeled(table: pa.Table) -> pa.Table:
    return table.filter([word in EXPRESSIONS for word in table["expression"].to_pylist()])
