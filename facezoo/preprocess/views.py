"""Views of images for the detector: reduced images and tiles, and the way back to image pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
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

    image: int
    pixels: Tensor
    """In [-1, 1], padded to whole strides, (3, H, W)."""
    scale: tuple[float, float]
    """View pixels per pixel of the rotated image, x and y."""
    offset: tuple[int, int]
    """Place of the view in the rotated image, x and y."""
    quarters: int
    """Rotation of the image, quarter turns counterclockwise."""
    size: tuple[int, int]
    """Height and width of the image before rotation."""
    limits: tuple[float, ...] = (-inf, -inf, inf, inf)
    """Edges that boxes must not cross, x0, y0, x1, y1, pixels of the view."""
    largest: float = inf
    """Largest longer side of a box, pixels of the view."""

    @property
    def numbers(self) -> tuple[float, ...]:
        """All but the pixels: limits, largest, scale, offset, width and height, quarters, image."""
        height, width = self.size
        place = (*self.scale, *self.offset, width, height)
        return (*self.limits, self.largest, *place, self.quarters, self.image)


def views_of(
    image: Tensor,
    index: int,
    quarters: int,
    detector: FaceDetector,
    *,
    min_side: int,
    max_side: int,
    min_face: float | None,
) -> Iterator[View]:
    """Cut an image into the views that the network takes.

    Args:
        image: uint8 RGB, (H, W, 3).
        index: index of the image.
        quarters: rotation to search at, quarter turns counterclockwise.
        detector: the network.
        min_side: least longer side of the image at detection, pixels.
        max_side: largest longer side of the image at detection, pixels.
        min_face: smallest side of a face to find, pixels of the image; None for one view.
    """
    size = (image.shape[0], image.shape[1])
    pixels = image.permute(2, 0, 1)[None]
    pixels = torch.rot90(pixels, quarters, (2, 3)) if quarters else pixels
    height, width = pixels.shape[2:]
    longest = max(height, width)
    side = min(max(longest, min_side), max_side)
    if min_face is not None:
        detailed = longest * detector.smallest_face / min_face
        while detailed > side:
            for tile in _tiles(pixels, detailed / longest, max_side):
                yield replace(
                    tile,
                    image=index,
                    pixels=_padded(tile.pixels, detector.multiple),
                    quarters=quarters,
                    size=size,
                )
            detailed /= _COARSER
    shape = [max(1, round(s * side / longest)) for s in (height, width)]
    shown = _resized(pixels, shape)
    scale_xy = (shape[1] / width, shape[0] / height)
    yield View(index, _padded(shown[0], detector.multiple), scale_xy, (0, 0), quarters, size)


def _tiles(pixels: Tensor, scale: float, side: int) -> Iterator[View]:
    """Cut overlapping tiles of at most ``side`` pixels at a scale.

    A face that fits into the overlap is whole in one of the tiles. The others are left to coarser
    scales, and parts of faces at the edges of tiles are dropped.
    """
    height, width = pixels.shape[2:]
    extent, overlap = int(side / scale), int(OVERLAP / scale)
    for y in range(0, max(1, height - overlap), extent - overlap):
        for x in range(0, max(1, width - overlap), extent - overlap):
            part = pixels[..., y : y + extent, x : x + extent]
            rows, columns = part.shape[2:]
            shown = _resized(part, [max(1, round(s * scale)) for s in (rows, columns)])
            limits = (
                0.0 if x else -inf,
                0.0 if y else -inf,
                shown.shape[3] - 1.0 if x + columns < width else inf,
                shown.shape[2] - 1.0 if y + rows < height else inf,
            )
            ratio = (shown.shape[3] / columns, shown.shape[2] / rows)
            yield View(0, shown[0], ratio, (x, y), 0, (0, 0), limits, OVERLAP)


def _resized(pixels: Tensor, shape: list[int]) -> Tensor:
    """Resize uint8 (1, 3, H, W), and map it to [-1, 1]."""
    if shape != list(pixels.shape[2:]):
        # CPUs resize bytes many times as fast as floats; GPUs resize floats only.
        pixels = pixels if pixels.device.type == "cpu" else pixels.float()
        pixels = F.interpolate(pixels, size=shape, mode="bilinear", antialias=True)
    return pixels.float() / 127.5 - 1


def _padded(pixels: Tensor, multiple: int) -> Tensor:
    """Pad (3, H, W) on the right and below."""
    height, width = pixels.shape[1:]
    return F.pad(pixels, (0, -width % multiple, 0, -height % multiple))


def unrotated(points: Tensor, quarters: Tensor, size: Tensor) -> Tensor:
    """Map points (N, P, 2) of an image rotated by quarter turns (N, 1) back to the image.

    ``size`` is the width and height of the image, (N, 1, 2).
    """
    x, y = points.unbind(-1)
    right, below = (size - 1).unbind(-1)
    turns = [(x, y), (right - y, x), (right - x, below - y), (y, below - x)]
    turned = torch.stack([torch.stack(pair, -1) for pair in turns])
    return turned[quarters[:, 0], torch.arange(len(points), device=points.device)]
