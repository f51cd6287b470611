"""The rows that are fitted to and told, and an entrant's features of them, kept in a folder."""

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
from facezoo.evaluate.benchmark.entrants import Entrant
from facezoo.evaluate.embedding import embed_given
from facezoo.evaluate.leakage import labelled, numbered
from facezoo.evaluate.verification import Pairs, read_pairs
from facezoo.hub.tensors import read_tensors, save
from facezoo.results import EXPRESSIONS

if TYPE_CHECKING:
    import pyarrow as pa

PAIRS = "lfw_pairs_val.csv"
PACKS = ("ferplus.parquet", "lfw.parquet", "london_expr.parquet", PAIRS)
FERPLUS_TRAIN, FERPLUS, LFW_TRAIN, LFW, LONDON = VIEWS = (
    "FER+ train",
    "FER+ test",
    "LFW train",
    "LFW val",
    "London",
)

Features = dict[str, dict[str, Tensor]]
"""By space and view, (N, D)."""


@dataclass(frozen=True)
class View:
    """Rows of a pack."""

    table: pa.Table
    files: list[str]
    labels: Tensor
    """Index in ``EXPRESSIONS``, -1 where there is none, int64, (N,)."""
    people: Tensor | None
    """Who is on each, the same number for the same person in every view, int64, (N,); None where
    that is not known."""
    yaw_deg: Tensor
    """NaN where unknown, (N,)."""
    digest: str
    """Of the names of the files."""

    @cached_property
    def shown(self) -> str:
        """A digest of what features are of: the photographs, and where the faces stand in them."""
        digest = hashlib.sha256(repr(self.table["landmarks"].to_pylist()).encode())
        for image in self.table["image"]:
            digest.update(hashlib.sha256(image.as_py()).digest())
        return digest.hexdigest()


@dataclass(frozen=True)
class Packs:
    """Everything that is read, by view."""

    folder: Path
    views: dict[str, View]
    pairs: Pairs

    @classmethod
    def read(cls, folder: Path) -> Packs:
        """The packs of a folder.

        Raises:
            FileNotFoundError: naming what is missing.
        """
        check_packs(folder, *PACKS)
        ferplus, lfw = folder / "ferplus.parquet", folder / "lfw.parquet"
        tables = {
            FERPLUS_TRAIN: labelled(ferplus, "train", EXPRESSIONS),
            FERPLUS: labelled(ferplus, "test", EXPRESSIONS),
            LFW_TRAIN: read_pack(lfw, "train"),
            LFW: read_pack(lfw, "val"),
            LONDON: read_pack(folder / "london_expr.parquet").sort_by("identity"),
        }
        names = {k: t["identity"].to_pylist() for k, t in tables.items() if _named(t)}
        every = numbered([name for part in names.values() for name in part])
        parts = every.split([len(part) for part in names.values()])
        people = dict(zip(names, parts, strict=True))
        views = {key: _view(table, people.get(key)) for key, table in tables.items()}
        return cls(folder, views, read_pairs(folder / PAIRS))

    def digests(self) -> dict[str, str]:
        """What the numbers were measured on, by view."""
        return {key: f"{len(v.files)} images, {v.digest[:12]}" for key, v in self.views.items()}


def features_of(
    entrant: Entrant, packs: Packs, cache: Path, wanted: Iterable[str] = VIEWS
) -> Features:
    """Features of views, from the cache as far as they are there.

    Args:
        entrant: whose.
        packs: of what.
        cache: a folder, in which a file per view appears when the view is done.
        wanted: which views.
    """
    folder = cache / re.sub(r"[^\w.-]+", "-", f"{entrant.name}-{entrant.key[:12]}")
    folder.mkdir(parents=True, exist_ok=True)
    found: Features = {space: {} for space in entrant.spaces}
    for key in wanted:
        view = packs.views[key]
        path = folder / f"{re.sub(r'[^a-z]+', '-', key.lower())}-{view.shown[:12]}.safetensors"
        if not path.is_file():
            save(embed_given(entrant, view.table, entrant.spaces), path)
        for space, rows in read_tensors(path).items():
            found[space][key] = rows
    return found


def _named(table: pa.Table) -> bool:
    return "identity" in table.column_names


def _view(table: pa.Table, people: Tensor | None) -> View:
    files = table["file"].to_pylist()
    yaw = torch.full((len(files),), float("nan"))
    return View(
        table=table,
        files=files,
        labels=majority_labels(table),
        people=people,
        yaw_deg=yaw_column(table) if "yaw" in table.column_names else yaw,
        digest=hashlib.sha256("\n".join(files).encode()).hexdigest(),
    )
