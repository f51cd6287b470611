"""Views of images for the detector: reduced images and tiles, and the way back to image pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

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

    image: int
    """Index of the image."""
    pixels: Tensor
    """RGB in [0, 255], uint8 on a CPU, (H, W, 3)."""
    limits: tuple[float, ...]
    """Edges that boxes must not cross, x0, y0, x1, y1, pixels of the view."""
    largest: float
    """Largest longer side of a box, pixels of the view."""
    scale: tuple[float, float]
    """View pixels per pixel of the rotated image, x and y."""
    offset: tuple[int, int]
    """Place of the view in the rotated image, x and y."""
    turn: tuple[int, ...]
    """Matrix from the rotated image to the image, (2, 3) row by row."""
    quarters: int
    """Rotation of the image, quarter turns counterclockwise."""

    @property
    def numbers(self) -> tuple[float, ...]:
        """All but the pixels, in the order of the fields; the image comes last."""
        place = (*self.scale, *self.offset, *self.turn)
        return (*self.limits, self.largest, *place, self.quarters, self.image)


class _Grid(NamedTuple):
    """Tiles of one scale; the whole image is one tile."""

    numerator: float
    """The scale is this number over ``denominator``, so that it is exact for the whole image."""
    denominator: float
    extent: int
    """Side of a tile, pixels of the image."""
    overlap: int
    """Pixels of the image that neighbors share."""
    largest: float
    """See ``View``."""


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
    grids = []
    if min_face is not None:
        detailed = longest * detector.smallest_face / min_face
        while detailed > side:
            scale = detailed / longest
            grids.append(_Grid(scale, 1, int(max_side / scale), int(OVERLAP / scale), OVERLAP))
            detailed /= _COARSER
    grids.append(_Grid(side, longest, longest, 0, inf))
    right, below = image.shape[1] - 1, image.shape[0] - 1
    turn = (
        (1, 0, 0, 0, 1, 0),
        (0, -1, right, 1, 0, 0),
        (-1, 0, right, 0, -1, below),
        (0, 1, 0, -1, 0, below),
    )[quarters]
    views = []
    for grid in grids:
        step = grid.extent - grid.overlap
        for y in range(0, max(1, height - grid.overlap), step):
            for x in range(0, max(1, width - grid.overlap), step):
                part = pixels[..., y : y + grid.extent, x : x + grid.extent]
                rows, columns = part.shape[2:]
                high = max(1, round(rows * grid.numerator / grid.denominator))
                wide = max(1, round(columns * grid.numerator / grid.denominator))
                limits = (
                    0.0 if x else -inf,
                    0.0 if y else -inf,
                    wide - 1.0 if x + columns < width else inf,
                    high - 1.0 if y + rows < height else inf,
                )
                scale_xy = (wide / columns, high / rows)
                shown = _shown(part, (high, wide))
                view = View(index, shown, limits, grid.largest, scale_xy, (x, y), turn, quarters)
                views.append(view)
    return views


def _shown(pixels: Tensor, shape: tuple[int, int]) -> Tensor:
    """Resize uint8 (1, 3, H, W); the result is (H, W, 3)."""
    if shape != tuple(pixels.shape[2:]):
        # CPUs resize bytes many times as fast as floats; GPUs resize floats only.
        pixels = pixels if pixels.device.type == "cpu" else pixels.float()
        pixels = F.interpolate(pixels, size=shape, mode="bilinear", antialias=True)
    return pixels[0].permute(1, 2, 0)


def padded_shape(view: View, multiple: int) -> tuple[int, int]:
    """Return height and width of a view that is padded to multiples of a number of pixels."""
    height, width = view.pixels.shape[:2]
    return height + -height % multiple, width + -width % multiple


def as_batch(views: Sequence[View], multiple: int) -> Tensor:
    """Map views of one padded shape to [-1, 1], and pad them with 0 on the right and below.

    Returns:
        Input of the network, channels last in memory, (B, 3, H, W).
    """
    pixels = views[0].pixels
    shape = (len(views), *padded_shape(views[0], multiple), 3)
    batch = torch.full(shape, 127.5, dtype=torch.float32, device=pixels.device)
    for place, view in zip(batch, views, strict=True):
        height, width = view.pixels.shape[:2]
        place[:height, :width] = view.pixels
    return batch.div_(127.5).sub_(1).permute(0, 3, 1, 2)
