"""Quality of detected faces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from facezoo.results import Faces

SIDE = 112
"""Side of the face boxes that are compared, pixels."""
LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of R, G and B (ITU-R BT.601)."""


def measure(images: Sequence[Tensor], faces: Faces) -> Faces:
    """Add the sharpness of the faces of images, uint8 RGB, each (H, W, 3)."""
    return replace(faces, sharpness=sharpness(images, faces.boxes, faces.image_index))


def sharpness(images: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
    """Measure how sharp faces are: the variance of the Laplacian of their luminance.

    Source: Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000. The
    part of the image in the box is resized to ``SIDE`` pixels before, so that faces of different
    sizes compare. Blur, a low resolution and a low contrast lower the value; noise raises it.

    Args:
        images: uint8 RGB, each (H, W, 3).
        boxes: x0, y0, x1, y1 in pixels, (F, 4).
        image_index: image of each box, (F,).

    Returns:
        For luminance in [0, 255]; NaN for a box of NaN, or of less than 2 pixels in the image,
        (F,).
    """
    result = boxes.new_full((len(boxes),), math.nan)
    corners = boxes.nan_to_num().round().int().tolist()  # a box without pixels for NaN
    for row, (number, (x0, y0, x1, y1)) in enumerate(
        zip(image_index.tolist(), corners, strict=True)
    ):
        patch = images[number][max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
        if min(patch.shape[:2]) < 2:
            continue
        gray = (patch * patch.new_tensor(LUMINANCE, dtype=torch.float32)).sum(-1)
        gray = F.interpolate(gray[None, None], (SIDE, SIDE), mode="bilinear", antialias=True)[0, 0]
        sides = gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:]
        result[row] = (sides - 4 * gray[1:-1, 1:-1]).var()
    return result
