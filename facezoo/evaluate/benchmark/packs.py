"""Evaluation data, and the features of an encoder for them, cached in a folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from facezoo.data.packs import check_packs, majority_labels, read_pack, yaw_column
from facezoo.evaluate.benchmark.encoders import Entry
from facezoo.evaluate.embedding import embed_aligned
from facezoo.evaluate.leakage import labeled, numbered
from facezoo.evaluate.verification import Pairs, read_pairs
from facezoo.hub.tensors import read_tensors, save
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

Features = dict[str, dict[str, Tensor]]
"""By space and split, (N, D)."""


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
            FERPLUS_TRAIN: labeled(ferplus, "train", EXPRESSIONS),
            FERPLUS: labeled(ferplus, "test", EXPRESSIONS),
            LFW_TRAIN: read_pack(lfw, "train"),
            LFW: read_pack(lfw, "val"),
            LONDON: read_pack(folder / "london_expr.parquet").sort_by("identity"),
        }
        names = {
            key: table["identity"].to_pylist()
            for key, table in tables.items()
            if "identity" in table.column_names
        }
        numbers = numbered([name for part in names.values() for name in part])
        parts = numbers.split([len(part) for part in names.values()])
        identities = dict(zip(names, parts, strict=True))
        splits = {key: _split(table, identities.get(key)) for key, table in tables.items()}
        return cls(splits, read_pairs(folder / PAIRS))

    def description(self) -> dict[str, str]:
        """Describe the data by split: number of images and a digest of their names."""
        return {
            key: f"{len(split.files)} images, "
            + hashlib.sha256("\n".join(split.files).encode()).hexdigest()[:12]
            for key, split in self.splits.items()
        }


def _split(table: pa.Table, identities: Tensor | None) -> Split:
    unknown = torch.full((len(table),), float("nan"))
    yaw_deg = yaw_column(table) if "yaw" in table.column_names else unknown
    return Split(table, majority_labels(table), identities, yaw_deg)


def features_of(
    entry: Entry, packs: Packs, cache: Path, splits: Iterable[str] = SPLITS
) -> Features:
    """Compute the features of splits, or read them from the cache.

    Args:
        entry: the encoder.
        packs: the data.
        cache: folder that gets a file per split when the split is done.
        splits: names of splits.
    """
    folder = cache / re.sub(r"[^\w.-]+", "-", f"{entry.name}-{entry.key[:12]}")
    folder.mkdir(parents=True, exist_ok=True)
    features: Features = {space: {} for space in entry.spaces}
    for key in splits:
        split = packs.splits[key]
        path = folder / f"{re.sub(r'[^a-z]+', '-', key.lower())}-{split.digest[:12]}.safetensors"
        if not path.is_file():
            save(embed_aligned(entry, split.table, entry.spaces), path)
        for space, rows in read_tensors(path).items():
            features[space][key] = rows
    return features
