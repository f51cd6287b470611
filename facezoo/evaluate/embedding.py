"""What a model makes of a pack: of crops by the pack's landmarks, and of whole photographs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from facezoo.data.packs import aligned_crops, decode
from facezoo.hub.card import Preprocessing
from facezoo.models.base import FaceModel
from facezoo.preprocess.alignment import normalize
from facezoo.preprocess.pipeline import find_faces

if TYPE_CHECKING:
    import pyarrow as pa

GIVEN, FOUND = "crops by the data set's landmarks", "whole images, faces found by face-detector"


class Encoder(Protocol):
    """What can be asked for results on prepared crops; every ``FaceModel`` is one."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How crops are prepared."""

    @property
    def device(self) -> torch.device:
        """Where crops are wanted."""

    def run(self, crops: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        """Results by name, (F, D), of normalised crops (F, 3, S, S)."""


def both_ways(model: FaceModel, table: pa.Table, what: str) -> Iterator[tuple[str, Tensor]]:
    """Results (N, D) on given crops and on whole images, NaN rows where no face was found."""
    yield GIVEN, embed_given(model, table, [what])[what]
    yield FOUND, embed_found(model, table, [what])[what]


def embed_given(model: Encoder, table: pa.Table, wanted: Sequence[str]) -> dict[str, Tensor]:
    """Results on crops aligned by the landmarks of the pack.

    Args:
        model: the model.
        table: rows with ``image`` and ``landmarks``.
        wanted: names of capabilities, such as ``"encode_expression"``.

    Returns:
        float32 on the CPU by name, (N, D).
    """
    crops = aligned_crops(table, model.preprocessing.template, model.preprocessing.size)
    parts = []
    for part in tqdm(crops.split(256), desc=f"{_said(wanted)}, given crops", unit="batch"):
        batch = normalize(part.to(model.device).float(), model.preprocessing)
        parts.append(model.run(batch, wanted))
    return _joined(parts)


def embed_found(model: FaceModel, table: pa.Table, wanted: Sequence[str]) -> dict[str, Tensor]:
    """Results on the largest face of each whole photograph, NaN rows where none was found.

    Args:
        model: the model.
        table: rows with ``image``.
        wanted: names of capabilities.

    Returns:
        float32 on the CPU by name, (N, D).
    """
    parts = []
    images = table["image"]
    for begin in tqdm(
        range(0, len(table), 64), desc=f"{_said(wanted)}, whole images", unit="batch"
    ):
        photos = [decode(i.as_py()).to(model.device) for i in images[begin : begin + 64]]
        faces = find_faces(photos, faces="largest", on_missing="nan")
        parts.append(model.encode_faces(photos, faces, wanted))
    return _joined(parts)


def _said(wanted: Sequence[str]) -> str:
    return " and ".join(wanted)


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}
