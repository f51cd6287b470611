"""Where IPD-FER's training rows come from: the packs, or a data set in its official layout."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facezoo.data.crops import load_crops
from facezoo.data.expressions import ExpressionData
from facezoo.data.official import read_official
from facezoo.data.packs import check_packs
from facezoo.data.yaw import pose_labels
from facezoo.evaluate.verification import Pairs, read_pairs
from facezoo.models.ipd_fer.train.dataset import Rows, read_rows
from facezoo.models.ipd_fer.train.recipes import MARGIN, SIZE, TEMPLATE
from facezoo.training.run import digest_of_files

_PACKS = ("ferplus", "lfw")
_FACES = ("faces_wild", "london_expr")
_HELD_OUT = 0.1
"""Share of the training images that chooses the epoch where a set has no validation split."""


@dataclass(frozen=True)
class Sources:
    """The data sets of a run by name; the first one's validation split chooses the epoch."""

    train: dict[str, Rows]
    val: dict[str, Rows]
    faces: tuple[Rows, ...]
    """Further images that train E_id: the web faces and London."""
    pairs: Pairs | None
    """Of the second one's validation split, for the rounds that train E_id; None without them."""
    said: tuple[str, ...]
    """What they are, for the card."""
    digest: dict[str, Any]
    """What tells them from others, see ``facezoo.training.run.check_data``."""


def from_packs(folder: Path, cache: Path | None = None) -> Sources:
    """FER+ and LFW from ``ferplus.parquet``, ``lfw.parquet`` and ``lfw_pairs_val.csv``."""
    packs = (*_PACKS, *_FACES)
    names = (*(f"{pack}.parquet" for pack in packs), "lfw_pairs_val.csv")
    check_packs(folder, *names)
    digest = digest_of_files(folder, [folder / name for name in names])
    if cache is not None:
        cache = cache / digest["sha256"]
    return Sources(
        train={pack: read_rows(folder, pack, "train", cache) for pack in _PACKS},
        val={pack: read_rows(folder, pack, "val", cache) for pack in _PACKS},
        faces=tuple(read_rows(folder, pack, "train", cache) for pack in _FACES),
        pairs=read_pairs(folder / "lfw_pairs_val.csv"),
        said=(
            "FER+ train: 26,804 images of FER2013 with the annotators' votes",
            "LFW (deep-funneled) train: 8,408 photographs, expression labels made by machine",
            "faces_wild train: 29,270 web images (UTKFace, All-Age-Faces, Caltech, US Congress)",
            "Face Research Lab London Set train: 73 people, neutral and smiling",
            "teacher for identity: dlib_face_recognition_resnet_model_v1",
        ),
        digest=digest,
    )


def from_official(name: str, root: Path, fold: int | None, device: torch.device) -> Sources:
    """A data set in its official layout, faces found by this package's detector.

    The validation images are the set's own; where it has none, or where the papers test on it
    (SFEW), a tenth of the training images by the hash of their names. With folds, ``fold`` is left
    for testing and the next one validates.

    Args:
        name: a name of ``facezoo.data.official.READERS``.
        root: the folder where the set was unpacked.
        fold: which fold is for testing, for sets that have folds, and only for those.
        device: where faces are found.

    Raises:
        ValueError: if a fold is wanted and not given, or the other way round.
    """
    data = read_official(name, root)
    train, val = split_rows(data, fold)
    held = "" if fold is None else f", test fold {fold}"
    return Sources(
        train={name: _rows(data, train, device)},
        val={name: _rows(data, val, device)},
        faces=(),
        pairs=None,
        said=(f"{name}: {len(train)} training and {len(val)} validation images{held}",),
        digest=_digest(data, root, train, val),
    )


def _digest(data: ExpressionData, root: Path, *parts: Tensor) -> dict[str, Any]:
    """What tells the rows of an official set from others; see ``digest_of_files``."""
    rows = torch.cat(parts)
    columns = [data.labels, data.distributions, data.landmarks]
    said = [None if column is None else column[rows].tolist() for column in columns]
    counts = [len(part) for part in parts]
    files = digest_of_files(root, [data.files[row] for row in rows.tolist()])
    labels = hashlib.sha256(json.dumps([counts, *said]).encode()).hexdigest()[:12]
    return {**files, "labels": labels}


def split_rows(data: ExpressionData, fold: int | None) -> tuple[Tensor, Tensor]:
    """Row numbers that train and that validate; see ``from_official``."""
    if (data.fold is None) != (fold is None):
        given = "no fold was given" if fold is None else f"fold {fold} was given"
        has = "has no folds" if data.fold is None else "is split into folds"
        raise ValueError(f"{data.name} {has}, and {given}; use --fold for sets with folds only")
    if data.fold is not None and fold is not None:
        count = int(data.fold.max()) + 1
        if not 0 <= fold < count:
            raise ValueError(f"fold must be 0 to {count - 1} for {data.name}, got {fold}")
        labelled = data.labels >= 0
        val = (data.fold == (fold + 1) % count) & labelled
        train = (data.fold != fold) & (data.fold != (fold + 1) % count) & labelled
        return train.nonzero()[:, 0], val.nonzero()[:, 0]
    rows = data.rows("train")
    if "val" in data.splits and "test" in data.splits:
        return rows, data.rows("val")
    held = torch.tensor([_held_out(data.files[row].name) for row in rows.tolist()])
    return rows[~held], rows[held]


def _held_out(name: str) -> bool:
    digest = hashlib.sha256(f"facezoo:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < _HELD_OUT


def _rows(data: ExpressionData, chosen: Tensor, device: torch.device) -> Rows:
    crops = load_crops(data, chosen, template=TEMPLATE, size=SIZE, margin=MARGIN, device=device)
    kept = crops.rows
    return Rows(
        crops=crops.images,
        teacher=torch.full((len(kept), 128), float("nan")),
        expression=data.distributions[kept],
        labels=data.labels[kept],
        poses=pose_labels(crops.yaw_deg),
        persons=[data.persons[row] for row in kept.tolist()],
        files=[data.files[row].name for row in kept.tolist()],
    )
