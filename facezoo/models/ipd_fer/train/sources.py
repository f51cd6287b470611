"""Data sets that IPD-FER trains on: the packs, or a data set in its official layout."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facezoo.data.crops import load_crops
from facezoo.data.expressions import ExpressionData
from facezoo.data.official import read_official
from facezoo.data.packs import check_packs, read_pack
from facezoo.evaluate.verification import read_pairs
from facezoo.landmarks import pose_labels
from facezoo.models.ipd_fer.train.data import Rows, Sources, read_rows
from facezoo.models.ipd_fer.train.recipes import MARGIN, SIZE, TEMPLATE
from facezoo.training.run import digest_of_files

PACKS = ("ferplus", "lfw")
"""Packs with expression labels."""
FACES = ("faces_wild", "london_expr")
"""Further packs, for the identity encoder, self-training and the decoder."""
INSIDE = 0.85
"""Share of a crop of faces_wild inside its source from which it shows the whole head."""
_VAL_SHARE = 0.1
"""Share of the training images that selects the epoch where a set has no validation split."""


def from_packs(folder: Path, cache: Path | None = None) -> Sources:
    """Read the files of ``PACKS``, ``FACES`` and LFW's pairs in a folder; see ``read_rows``."""
    names = (*(f"{pack}.parquet" for pack in (*PACKS, *FACES)), "lfw_pairs_val.csv")
    check_packs(folder, *names)
    digest = digest_of_files(folder, [folder / name for name in names])
    if cache is not None:
        cache = cache / str(digest["sha256"])
    train = {pack: read_rows(folder, pack, "train", cache) for pack in PACKS}
    faces = {pack: read_rows(folder, pack, "train", cache) for pack in FACES}
    whole = read_pack(folder / "faces_wild.parquet", "train", ["inside"])["inside"].to_numpy()
    heads = {"lfw": train["lfw"], **faces}
    heads["faces_wild"] = faces["faces_wild"].rows_where(torch.from_numpy(whole > INSIDE))
    return Sources(
        train=train,
        val={pack: read_rows(folder, pack, "val", cache) for pack in PACKS},
        descriptions=(
            "FER+ train: 26,804 images of FER2013 with the annotators' votes",
            "LFW (deep-funneled) train: 8,408 images, expression labels made by a machine",
            "faces_wild train: 29,270 web images (UTKFace, All-Age-Faces, Caltech, US Congress)",
            "Face Research Lab London Set train: 73 identities, neutral and smiling",
            "teacher for identity: dlib_face_recognition_resnet_model_v1",
        ),
        digest=digest,
        faces=faces,
        heads=heads,
        pairs=read_pairs(folder / "lfw_pairs_val.csv"),
    )


def from_official(name: str, root: Path, fold: int | None, device: torch.device) -> Sources:
    """Read a data set in its official layout; this package's detector finds the faces.

    The set's own validation split is used. Where it has none, or where the papers test on it
    (SFEW), a tenth of the training images validates, by the hash of their names. With folds, the
    fold after ``fold`` validates.

    Args:
        name: a name from ``facezoo.data.official.READERS``.
        fold: the test fold, for sets with folds.

    Raises:
        ValueError: if the set has folds and ``fold`` is None, or the other way round.
    """
    data = read_official(name, root)
    train, val = split_rows(data, fold)
    test = "" if fold is None else f", test fold {fold}"
    return Sources(
        train={name: _rows(data, train, device)},
        val={name: _rows(data, val, device)},
        descriptions=(f"{name}: {len(train)} training and {len(val)} validation images{test}",),
        digest=_digest(data, root, train, val),
    )


def _digest(data: ExpressionData, root: Path, *parts: Tensor) -> dict[str, Any]:
    rows = torch.cat(parts)
    columns = [data.labels, data.distributions, data.landmarks]
    values = [None if column is None else column[rows].tolist() for column in columns]
    counts = [len(part) for part in parts]
    files = digest_of_files(root, [data.files[row] for row in rows.tolist()])
    labels = hashlib.sha256(json.dumps([counts, *values]).encode()).hexdigest()[:12]
    return {**files, "labels": labels}


def split_rows(data: ExpressionData, fold: int | None) -> tuple[Tensor, Tensor]:
    """Return the row numbers of training and validation; see ``from_official``."""
    if (data.fold is None) != (fold is None):
        got = "no fold was given" if fold is None else f"fold {fold} was given"
        has = "has no folds" if data.fold is None else "is split into folds"
        raise ValueError(f"{data.name} {has}, and {got}; use --fold for sets with folds only")
    if data.fold is not None and fold is not None:
        count = int(data.fold.max()) + 1
        if not 0 <= fold < count:
            raise ValueError(f"fold must be 0 to {count - 1} for {data.name}, got {fold}")
        labeled = data.labels >= 0
        val = (data.fold == (fold + 1) % count) & labeled
        train = (data.fold != fold) & (data.fold != (fold + 1) % count) & labeled
        return train.nonzero()[:, 0], val.nonzero()[:, 0]
    rows = data.rows("train")
    if "val" in data.splits and "test" in data.splits:
        return rows, data.rows("val")
    validates = torch.tensor([_is_val(data.files[row].name) for row in rows.tolist()])
    return rows[~validates], rows[validates]


def _is_val(name: str) -> bool:
    digest = hashlib.sha256(f"facezoo:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < _VAL_SHARE


def _rows(data: ExpressionData, rows: Tensor, device: torch.device) -> Rows:
    crops = load_crops(data, rows, template=TEMPLATE, size=SIZE, margin=MARGIN, device=device)
    return Rows(
        crops=crops.images,
        landmarks=crops.landmarks,
        teacher=torch.full((len(crops.rows), 128), float("nan")),
        expression=data.distributions[crops.rows],
        labels=data.labels[crops.rows],
        poses=pose_labels(crops.yaw_deg),
        identities=[data.identities[row] for row in crops.rows.tolist()],
        files=[data.files[row].name for row in crops.rows.tolist()],
    )
