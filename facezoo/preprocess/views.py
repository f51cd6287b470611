"""Views of images for the detector: reduced images and tiles, and the way back to image pixels."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor

from facezoo.preprocess.detector import FaceDetector

# Tiles overlap by this, pixels as shown. A face that is larger fits into a tile of the next coarser
# scale, in which everything is a quarter as large.
OVERLAP, _COARSER = 160, 4


@dataclass(frozen=True)
class View:
    """A part of an image at one scale and rotation."""

    pixels: Tensor
    """In [-1, 1], padded to whole strides, (3, H, W)."""
    numbers: tuple[float, ...]
    """Edges that boxes must not cross, x0, y0, x1, y1, and the largest longer side of a box, pixels
    of the view; view pixels per pixel of the rotated image, x and y; place of the view in it, x and
    y; the matrix (2, 3) from the rotated image to the image; its rotation, quarter turns
    counterclockwise; and the index of the image."""


def views_of(
    image: Tensor,
    index: int,
    quarters: int,
    detector: FaceDetector,
    *,
    min_side: int,
    max_side: int,
    min_face: float | None,
) -> list[View]:
    """Cut an image into the views that the network takes.

    Args:
        image: uint8 RGB, (H, W, 3).
        index: index of the image.
        quarters: rotation to search at, quarter turns counterclockwise.
        detector: the network.
        min_side: least longer side of the image at detection, pixels.
        max_side: largest longer side of the image at detection, pixels.
        min_face: smallest side of a face to find, pixels of the image; None for one view.

    Returns:
        Tiles that overlap, from the finest scale on, and the whole image. A face that fits into the
        overlap is whole in one of the tiles. The others are left to coarser scales, and parts of
        faces at the edges of tiles are dropped.
    """
    pixels = image.permute(2, 0, 1)[None]
    pixels = torch.rot90(pixels, quarters, (2, 3)) if quarters else pixels
    height, width = pixels.shape[2:]
    longest = max(height, width)
    side = min(max(longest, min_side), max_side)
    grids: list[tuple[float, float, int, int, float]] = []
    if min_face is not None:
        detailed = longest * detector.smallest_face / min_face
        while detailed > side:
            scale = detailed / longest
            grids.append((scale, 1, int(max_side / scale), int(OVERLAP / scale), OVERLAP))
            detailed /= _COARSER
    grids.append((side, longest, longest, 0, inf))
    right, below = image.shape[1] - 1, image.shape[0] - 1
    turn = (
        (1, 0, 0, 0, 1, 0),
        (0, -1, right, 1, 0, 0),
        (-1, 0, right, 0, -1, below),
        (0, 1, 0, -1, 0, below),
    )[quarters]
    views = []
    for multiplier, divisor, extent, overlap, largest in grids:
        for y in range(0, max(1, height - overlap), extent - overlap):
            for x in range(0, max(1, width - overlap), extent - overlap):
                part = pixels[..., y : y + extent, x : x + extent]
                rows, columns = part.shape[2:]
                high = max(1, round(rows * multiplier / divisor))
                wide = max(1, round(columns * multiplier / divisor))
                limits = (
                    0.0 if x else -inf,
                    0.0 if y else -inf,
                    wide - 1.0 if x + columns < width else inf,
                    high - 1.0 if y + rows < height else inf,
                )
                ratio = (wide / columns, high / rows)
                shown = _shown(part, (high, wide), detector.multiple)
                views.append(View(shown, (*limits, largest, *ratio, x, y, *turn, quarters, index)))
    return views


def _shown(pixels: Tensor, shape: tuple[int, int], multiple: int) -> Tensor:
    """Resize uint8 (1, 3, H, W), map it to [-1, 1], and pad it on the right and below."""
    if shape != tuple(pixels.shape[2:]):
        # CPUs resize bytes many times as fast as floats; GPUs resize floats only.
        pixels = pixels if pixels.device.type == "cpu" else pixels.float()
        pixels = F.interpolate(pixels, size=shape, mode="bilinear", antialias=True)
    shown = pixels[0].float() / 127.5 - 1
    return F.pad(shown, (0, -shape[1] % multiple, 0, -shape[0] % multiple))
