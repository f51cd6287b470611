"""Where five landmarks stand in an aligned crop, by name.

Order: right eye, left eye, nose tip, right and left mouth corner (the subject's own sides, so the
right eye is on the image's left). Coordinates are fractions of the crop's side with pixel centres
at whole numbers: a landmark at fraction f of a crop of side S lies at pixel f * S - 0.5.
"""

from __future__ import annotations

from difflib import get_close_matches

import torch
from torch import Tensor

from facezoo.errors import UnknownNameError

# Pixels of a 112 x 112 crop; the template of ArcFace (Deng et al. 2019) and of most open face
# recognition models since.
_ARCFACE_112 = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)


def _arcface_in(side: float, shift_x: float, shift_y: float) -> list[tuple[float, float]]:
    """The ArcFace points inside a larger square that starts ``shift`` pixels before the crop."""
    return [((x + shift_x + 0.5) / side, (y + shift_y + 0.5) / side) for x, y in _ARCFACE_112]


TEMPLATES: dict[str, list[tuple[float, float]]] = {
    # Tight: brows to just under the mouth corners' height plus a margin; 35 px between the eyes.
    "arcface112": _arcface_in(112, 0, 0),
    # Loose: the whole head with hair and chin, as FaceNet's crops with a margin show it. The same
    # five points in a square 1.6 times as wide, the face a little above its middle.
    "facenet-loose": _arcface_in(179.2, 33.6, 26.0),
    # FFHQ (Karras et al. 2019): the eyes' midpoint above the centre, the side four times the
    # distance from there to the mouth or twice that between the eyes, whichever is larger. These
    # are the points where a frontal face of ArcFace's proportions ends up under that rule.
    "ffhq": _arcface_in(162.7, 25.3, 15.6),
}


def template_points(name: str, size: int) -> Tensor:
    """Landmarks of a template in pixels of a crop.

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
    return torch.tensor(TEMPLATES[name], dtype=torch.float64) * size - 0.5
