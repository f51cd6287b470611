"""Run a model on the images of a pack: on aligned crops, and on whole images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from facezoo.data.packs import aligned_crops
from facezoo.hub.card import Preprocessing
from facezoo.models.base import FaceModel
from facezoo.preprocess.alignment import normalize
from facezoo.preprocess.pipeline import ImageOptions, face_batches
from facezoo.progress import progress_bar

if TYPE_CHECKING:
    import pyarrow as pa

ALIGNED = "crops by the data set's landmarks"
"""End of the protocol of measurements on crops, as cards record it."""
DETECTED = "whole images, faces found by face-detector"
"""End of the protocol of measurements on whole images, as cards record it."""


class Encoder(Protocol):
    """A network that gives results for prepared crops; every ``FaceModel`` is one."""

    @property
    def preprocessing(self) -> Preprocessing:
        """Preparation of the crops."""

    @property
    def device(self) -> torch.device:
        """Device of the crops."""

    def run(self, crops: Tensor, names: Sequence[str], /) -> dict[str, Tensor]:
        """Compute results by name, (F, D), for normalized crops (F, 3, S, S)."""


def both_ways(model: FaceModel, table: pa.Table, stage: str) -> Iterator[tuple[str, Tensor]]:
    """Yield results (N, D) on aligned crops, then on whole images with NaN rows without a face."""
    yield ALIGNED, embed_aligned(model, table, [stage])[stage]
    yield DETECTED, embed_detected(model, table, [stage])[stage]


def embed_aligned(model: Encoder, table: pa.Table, stages: Sequence[str]) -> dict[str, Tensor]:
    """Compute results on crops that are aligned by the landmarks of the pack.

    Args:
        table: rows with ``image`` and ``landmarks``.
        stages: names of capabilities, such as ``"encode_expression"``.

    Returns:
        float32 on the CPU by name, (N, D).
    """
    crops = aligned_crops(table, model.preprocessing.template, model.preprocessing.size)
    parts = []
    for part in progress_bar(crops.split(256), desc="aligned crops", unit="batch"):
        batch = normalize(part.to(model.device).float(), model.preprocessing)
        parts.append(model.run(batch, stages))
    return _joined(parts)


def embed_detected(model: FaceModel, table: pa.Table, stages: Sequence[str]) -> dict[str, Tensor]:
    """Compute results on the largest face of each whole image, NaN rows where there is none.

    Args:
        table: rows with ``image``.

    Returns:
        float32 on the CPU by name, (N, D).
    """
    images = [image.as_py() for image in table["image"]]
    options = ImageOptions(faces="largest", on_missing="nan", progress=True)
    parts = []
    for batch in face_batches(images, model.device, options):
        assert batch.faces is not None
        parts.append(model.encode_faces(batch.images, batch.faces, stages))
    return _joined(parts)


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}
