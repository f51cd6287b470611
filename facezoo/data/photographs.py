"""Photographs without labels to train on, in memory, and the batches that are drawn from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from facezoo.data.crops import load_crops
from facezoo.data.expressions import ExpressionData
from facezoo.data.packs import aligned_crops, read_pack
from facezoo.errors import warn_once
from facezoo.hub.card import Preprocessing
from facezoo.preprocess.folders import images_in, skipped_message
from facezoo.results import EXPRESSIONS

PACK = "lfw.parquet"
MARGIN = 2
"""Pixels kept around a crop on every side, which a random shift may show."""


@dataclass(frozen=True)
class Photographs:
    """Aligned crops with a margin, and who they show."""

    crops: Tensor
    """uint8, (N, 3, S + 2 MARGIN, S + 2 MARGIN)."""
    persons: list[str]
    """Names, empty where unknown, N."""
    said: str
    """What they are, for the card."""
    tag: str
    """The same for the checkpoint's name."""


def photograph_files(data: Path) -> list[Path]:
    """The pack of a folder, or its images where it has none, in their order.

    Raises:
        FileNotFoundError: if there is neither.
    """
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


def read_photographs(data: Path, preprocessing: Preprocessing, device: torch.device) -> Photographs:
    """The photographs to train on, aligned to a model's template and held in memory.

    Args:
        data: a folder with ``lfw.parquet``, whose split ``train`` is taken, or a folder of images
            of which each lies in the folder of its person or video, however deep, as in VoxCeleb;
            faces are then found by this package's detector. Images in no folder are of nobody.
        preprocessing: the model's.
        device: where faces are found.

    Raises:
        FileNotFoundError: if there is neither.
    """
    template, size = preprocessing.template, preprocessing.size
    files = photograph_files(data)
    if files == [data / PACK]:
        table = read_pack(data / PACK, "train")
        crops = aligned_crops(table, template, size, MARGIN)
        said = f"LFW (deep-funneled) train: {len(table):,} photographs with names"
        return Photographs(crops, table["identity"].to_pylist(), said, "lfw")
    folders = [path.parent.relative_to(data) for path in files]
    persons = [str(folder) if folder.parts else "" for folder in folders]
    found = load_crops(
        _unlabelled(data.name, files, persons),
        template=template,
        size=size,
        margin=MARGIN,
        device=device,
    )
    kept = [persons[row] for row in found.rows.tolist()]
    said = f"{data.name}: {len(kept):,} images in {len({*kept} - {''}):,} folders"
    return Photographs(found.images, kept, said, "own")


def centred(crops: Tensor) -> Tensor:
    """The middle of crops, nothing random, in [-1, 1], (B, 3, S, S)."""
    return _normalised(crops[..., MARGIN:-MARGIN, MARGIN:-MARGIN])


def augmented(
    crops: Tensor, draw: torch.Generator, grey: float = 0.0, shift: int = MARGIN
) -> Tensor:
    """Crops at random: moved by some pixels, half of them mirrored, some made grey.

    Args:
        crops: uint8, (B, 3, S + 2 MARGIN, S + 2 MARGIN).
        draw: chance.
        grey: share of the crops without colour.
        shift: most pixels that a crop is moved by, up to ``MARGIN``.

    Returns:
        In [-1, 1], (B, 3, S, S).
    """
    side = crops.shape[-1] - 2 * MARGIN
    places = torch.randint(2 * shift + 1, (len(crops), 2), generator=draw)
    corners = (places + MARGIN - shift).tolist()
    moved = [c[:, y : y + side, x : x + side] for c, (y, x) in zip(crops, corners, strict=True)]
    images = _normalised(torch.stack(moved))
    mirrored = torch.rand(len(crops), generator=draw) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    pale = torch.rand(len(crops), generator=draw) < grey
    images = torch.where(pale[:, None, None, None], images.mean(1, keepdim=True), images)
    return images.contiguous(memory_format=torch.channels_last)


def _normalised(crops: Tensor) -> Tensor:
    return crops.float() / 127.5 - 1


def _unlabelled(name: str, files: list[Path], persons: list[str]) -> ExpressionData:
    """Files as a data set without expressions and splits."""
    return ExpressionData(
        name=name,
        files=files,
        labels=torch.full((len(files),), -1),
        distributions=torch.zeros(len(files), len(EXPRESSIONS)),
        splits=["" for _ in files],
        persons=persons,
        cropped=False,
    )
