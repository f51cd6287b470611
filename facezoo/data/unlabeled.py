"""Face images without labels, in memory, and the augmented batches of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from facezoo.data.crops import cut_faces
from facezoo.data.packs import aligned_crops, check_packs, read_pack
from facezoo.errors import warn_once
from facezoo.hub.card import Preprocessing
from facezoo.preprocess.folders import images_in, skipped_message

if TYPE_CHECKING:
    import pyarrow as pa

PACK = "lfw.parquet"
WILD = "faces_wild.parquet"
FERPLUS = "ferplus.parquet"
WHOLE_HEAD = 0.85
"""Least share of pixels from the source for a crop of ``WILD`` that shows the whole head."""
MARGIN = 2
"""Pixels around a crop on every side, for random shifts."""


@dataclass(frozen=True)
class FaceCrops:
    """Aligned crops with a margin, and their identities."""

    crops: Tensor
    """uint8, (N, 3, S + 2 MARGIN, S + 2 MARGIN)."""
    identities: list[str]
    """Names, empty if unknown, N."""
    description: str
    """Description for the card."""
    tag: str
    """Tag of a checkpoint that is trained on them."""


def image_files(data: Path, wild: bool = False) -> list[Path]:
    """Return the pack in a folder, or its images, sorted, if it has no pack.

    Args:
        data: a folder with ``lfw.parquet``, or a folder of images.
        wild: add ``faces_wild.parquet``.

    Raises:
        FileNotFoundError: if there is neither, or no ``faces_wild.parquet`` for ``wild``.
    """
    if wild:
        check_packs(data, WILD)
        return [*image_files(data), data / WILD]
    if (data / PACK).is_file():
        return [data / PACK]
    names, skipped = images_in(data) if data.is_dir() else ([], [])
    if skipped:
        warn_once(f"{data}: {skipped_message(skipped)}")
    files = [data / name for name in names]
    if not files:
        raise FileNotFoundError(
            f"{data} has neither {PACK} nor images; --data must name a folder with one of them"
        )
    return files


def read_face_crops(
    data: Path, preprocessing: Preprocessing, device: torch.device, wild: bool = False
) -> FaceCrops:
    """Read the training images, aligned to a model's template.

    Args:
        data: a folder with ``lfw.parquet``, whose split ``train`` is used; or a folder of
            images, each in the folder of its person or video at any depth, as in VoxCeleb. Images
            outside of such a folder have no identity. Images that cannot be read or have no face
            are left out with a warning.
        wild: add the whole heads of the split ``train`` of ``faces_wild.parquet``, which have no
            identity.

    Raises:
        FileNotFoundError: if there is neither, or no ``faces_wild.parquet`` for ``wild``.
    """
    if wild:
        return _with_wild(read_face_crops(data, preprocessing, device), data, preprocessing)
    template, size = preprocessing.template, preprocessing.size
    files = image_files(data)
    if files == [data / PACK]:
        table = read_pack(data / PACK, "train")
        crops = aligned_crops(table, template, size, MARGIN)
        description = f"LFW (deep-funneled) train: {len(table):,} images with names"
        return FaceCrops(crops, table["identity"].to_pylist(), description, "lfw")
    faces = cut_faces(
        *(data.name, files),
        template=template,
        size=size,
        margin=MARGIN,
        device=device,
        skip_unreadable=True,
    )
    folders = [files[row].parent.relative_to(data) for row in faces.rows.tolist()]
    identities = [str(folder) if folder.parts else "" for folder in folders]
    named = {*identities} - {""}
    description = f"{data.name}: {len(identities):,} images in {len(named):,} folders"
    return FaceCrops(faces.images, identities, description, "own")


def _with_wild(faces: FaceCrops, data: Path, preprocessing: Preprocessing) -> FaceCrops:
    table = read_pack(data / WILD, "train")
    heads = table.filter([share > WHOLE_HEAD for share in table["inside"].to_pylist()])
    more = f"faces_wild train: {len(heads):,} whole heads without names"
    return replace(_joined(faces, heads, preprocessing, more), tag="wild")


def with_ferplus(faces: FaceCrops, data: Path, preprocessing: Preprocessing) -> FaceCrops:
    """Add the images of the split ``train`` of ``ferplus.parquet``, which have no identity.

    Raises:
        FileNotFoundError: if the folder lacks the pack.
    """
    check_packs(data, FERPLUS)
    table = read_pack(data / FERPLUS, "train")
    return _joined(faces, table, preprocessing, f"FER+ train: {len(table):,} images without names")


def _joined(
    faces: FaceCrops, table: pa.Table, preprocessing: Preprocessing, description: str
) -> FaceCrops:
    crops = aligned_crops(table, preprocessing.template, preprocessing.size, MARGIN)
    return FaceCrops(
        torch.cat([faces.crops, crops]),
        faces.identities + [""] * len(crops),
        f"{faces.description}; {description}",
        faces.tag,
    )


def center(crops: Tensor) -> Tensor:
    """Cut the margin off and scale to [-1, 1], (B, 3, S, S)."""
    return _scaled(crops[..., MARGIN:-MARGIN, MARGIN:-MARGIN])


def augmented(
    crops: Tensor, generator: torch.Generator, gray: float = 0.0, shift: int = MARGIN
) -> Tensor:
    """Shift crops by some pixels, mirror half of them, and take the color of some.

    Args:
        crops: uint8, (B, 3, S + 2 MARGIN, S + 2 MARGIN).
        gray: share of the crops without color.
        shift: largest shift in pixels, up to ``MARGIN``.

    Returns:
        In [-1, 1], (B, 3, S, S).
    """
    side = crops.shape[-1] - 2 * MARGIN
    places = torch.randint(2 * shift + 1, (len(crops), 2), generator=generator)
    corners = (places + MARGIN - shift).tolist()
    moved = [c[:, y : y + side, x : x + side] for c, (y, x) in zip(crops, corners, strict=True)]
    images = _scaled(torch.stack(moved))
    is_mirrored = torch.rand(len(crops), generator=generator) < 0.5
    images = torch.where(is_mirrored[:, None, None, None], images.flip(-1), images)
    is_gray = torch.rand(len(crops), generator=generator) < gray
    images = torch.where(is_gray[:, None, None, None], images.mean(1, keepdim=True), images)
    return images.contiguous(memory_format=torch.channels_last)


def _scaled(crops: Tensor) -> Tensor:
    return crops.float() / 127.5 - 1
