"""Positions of five landmarks in an aligned crop, by name.

Order: right eye, left eye, nose tip, right and left mouth corner (the subject's own sides, so the
right eye is on the image's left). Coordinates are fractions of the crop's side with pixel centers
at whole numbers: a landmark at fraction f of a crop of side S lies at pixel f * S - 0.5.
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from math import dist, hypot

import torch
from torch import Tensor

from facezoo.errors import UnknownNameError
from facezoo.landmarks import ARCFACE_112


def _arcface_in(side: float, left: float, top: float) -> list[tuple[float, float]]:
    """Convert ArcFace's points to fractions of a square with its corner at ``left``, ``top``.

    Side and corner are in pixels of the 112 x 112 crop, with pixel centers at whole numbers.
    """
    return [((x - left + 0.5) / side, (y - top + 0.5) / side) for x, y in ARCFACE_112]


def _ffhq() -> list[tuple[float, float]]:
    """Convert ArcFace's points by FFHQ's rule (Karras et al. 2019, appendix C).

    The center of the square is a tenth of the way from the eyes to the mouth. Half its side is the
    larger of twice the distance between the eyes and 1.8 times that from eyes to mouth.
    """
    right, left, _, mouth_right, mouth_left = ARCFACE_112
    eyes = ((right[0] + left[0]) / 2, (right[1] + left[1]) / 2)
    mouth = ((mouth_right[0] + mouth_left[0]) / 2, (mouth_right[1] + mouth_left[1]) / 2)
    down = (mouth[0] - eyes[0], mouth[1] - eyes[1])
    half = max(2.0 * dist(right, left), 1.8 * hypot(*down))
    return _arcface_in(
        2 * half, eyes[0] + 0.1 * down[0] - half + 0.5, eyes[1] + 0.1 * down[1] - half + 0.5
    )


TEMPLATES: dict[str, list[tuple[float, float]]] = {
    # Tight, from the forehead to the chin; 35 of 112 pixels between the eyes.
    "arcface112": _arcface_in(112, 0, 0),
    # Loose, the head with hair and chin, with the margins of FaceNet's crops: 1.5 times as wide.
    "facenet-loose": _arcface_in(168, -28, -28),
    # FFHQ: between the two, by the rule of that data set for a frontal face.
    "ffhq": _ffhq(),
}


@cache
def template_points(name: str, size: int) -> Tensor:
    """Return the landmarks of a template in pixels of a crop. Do not change them in place.

    Args:
        name: a key of ``TEMPLATES``.
        size: side of the crop, pixels.

    Returns:
        Points x, y, float64, (5, 2).

    Raises:
        UnknownNameError: if there is no such template; the message lists near matches.
    """
    if name not in TEMPLATES:
        near = get_close_matches(name, TEMPLATES) or sorted(TEMPLATES)
        raise UnknownNameError(f"no template named {name!r}; did you mean {' or '.join(near)}?")
    with torch.inference_mode(False):
        return torch.tensor(TEMPLATES[name], dtype=torch.float64, device="cpu") * size - 0.5
