"""Size and a few pixels of images, by which the images of a result are recognized."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from facezoo.results import Faces, Signature

GRID = 8
"""Rows and columns of the pixels of a signature."""
MOST_DIFFERENT = 12.0
"""Largest mean difference of two signatures of one image, in levels of 255. Other decoders and
JPEG compression change an image by less, and another image of the same size by more."""


def signatures(images: Sequence[Tensor]) -> tuple[Signature, ...]:
    """Return the signatures of images, uint8 RGB, each (H, W, 3)."""
    if not images:
        return ()
    pixels = torch.stack([_pixels(image) for image in images]).cpu().numpy()
    return tuple(
        Signature(image.shape[1], image.shape[0], part.tobytes())
        for image, part in zip(images, pixels, strict=True)
    )


def check_images(images: Sequence[Tensor], faces: Faces, first: int = 0) -> None:
    """Check that faces were found in these images.

    Args:
        images: uint8 RGB, each (H, W, 3).
        faces: faces; without signatures, only the number of images is checked.
        first: index of the first image among those of the faces.

    Raises:
        ValueError: if an image has another size, shows something else, or the faces have fewer
            images.
    """
    count = len(faces.signatures or faces.files or ())
    if first < 0 or (count and first + len(images) > count):
        index = first if first < 0 else max(first, count)
        known_images = f"{count} images" if count else "images"
        raise ValueError(
            f"image {index} is not one of the {known_images} of the result; pass the images of the "
            "result, in the same order, and count them from 0"
        )
    known = (faces.signatures or ())[first : first + len(images)]
    for index, (given, found) in enumerate(
        zip(signatures(images[: len(known)]), known, strict=True), first
    ):
        name = faces.files[index] if faces.files else None
        called = f"image {index} of the result" + (f" ({name})" if name else "")
        if given[:2] != found[:2]:
            raise ValueError(
                f"{called} has {found.width}x{found.height} pixels, and the image given for it has "
                f"{given.width}x{given.height}; pass the images of the result, in the same order "
                "and not resized"
            )
        pairs = zip(given.pixels, found.pixels, strict=True)
        if sum(abs(a - b) for a, b in pairs) / len(given.pixels) > MOST_DIFFERENT:
            raise ValueError(
                f"{called} looks different from the image given for it; pass the images of the "
                "result, in the same order. For an edited copy, first remove the signatures: "
                "dataclasses.replace(faces, signatures=None)"
            )


def _pixels(image: Tensor) -> Tensor:
    """Return pixels from the middle of each cell of a grid, (GRID, GRID, 3)."""
    cells = 2 * torch.arange(GRID, device=image.device) + 1
    rows, columns = (cells * side // (2 * GRID) for side in image.shape[:2])
    return image[rows[:, None], columns]
