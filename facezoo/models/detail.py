"""Edits that keep the detail of a face crop."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

GAIN, FREE = 16.0, 0.15
"""A change of ``FREE / GAIN`` of the range of the pixels smooths nothing; one of ``(1 + FREE) /
GAIN`` smooths fully."""
CHANGE, MASK, SMOOTH, WIDE = 1 / 16, 1 / 22, 1 / 12, 1 / 3.6
"""Sides of the blurs, as shares of the side of a crop."""
DARK, BRIGHTEN = 0.05, 3.0
"""Added to renderings before their ratio is taken, so that dark pixels make no noise; and the
largest ratio."""
SHARPEN = 1.5
"""Factor on the detail of the decoded face, since a decoder draws less than there is."""


def keep_detail(
    crops: Tensor, before: Tensor, after: Tensor, *, everywhere: bool = False
) -> Tensor:
    """Apply the difference between two decoded crops to the real crop.

    A decoder blurs. So an edit adds what it changes to the crop, instead of replacing the crop.
    What the edit changes over wide areas, such as color and light, is left out. Where the change is
    large, the detail of the crop shows the old expression, so the detail of ``after`` replaces it.

    Ours. GANimation (Pumarola et al., ECCV 2018) also keeps the input outside of a mask, which a
    network predicts there.

    Args:
        crops: RGB in [0, 1], (B, 3, S, S).
        before: decoded from the features of ``crops``, (B, 3, S, S).
        after: decoded from the changed features, (B, 3, S, S).
        everywhere: the edit changes color or light and moves nothing, so add the whole change and
            keep the detail of the crop everywhere.

    Returns:
        RGB in [0, 1], (B, 3, S, S); ``crops`` itself where nothing changes.

    Examples:
        >>> crops, decoded = torch.rand(1, 3, 112, 112), torch.rand(1, 3, 112, 112)
        >>> torch.equal(keep_detail(crops, decoded, decoded), crops)
        True
    """
    change = after - before
    if everywhere:
        return (crops + change).clamp(0, 1)
    change = change - _blurred(change, WIDE)
    size = _blurred(change.abs().mean(1, keepdim=True), CHANGE)
    changed = _blurred((GAIN * size - FREE).clamp(0, 1), MASK)
    # ``change`` removes the detail of ``before`` already, so that of the crop must replace it.
    replaced = _detail(crops) - _detail(before) - (SHARPEN - 1) * _detail(after)
    return (crops + change - changed * replaced).clamp(0, 1)


def relit(crops: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Apply the ratio of two renderings in different light to the real crop.

    The ratio contains light and no color of the face, so the crop keeps its detail. Source: the
    quotient image of Shashua and Riklin-Raviv, TPAMI 2001.

    Args:
        crops: RGB in [0, 1], (B, 3, S, S).
        before: rendered in the light of ``crops``, (B, 3, S, S).
        after: rendered in the other light, (B, 3, S, S).

    Returns:
        RGB in [0, 1], (B, 3, S, S); ``crops`` itself where the light stays.
    """
    ratio = (after + DARK) / (before + DARK)
    return (crops * ratio.clamp(max=BRIGHTEN)).clamp(0, 1)


def _detail(images: Tensor) -> Tensor:
    return images - _blurred(images, SMOOTH)


def _blurred(images: Tensor, share: float) -> Tensor:
    """Blur with three box filters, about a Gaussian, whose side is a share of the images'."""
    radius = max(1, round((share * images.shape[-1] - 1) / 2))
    for _ in range(3):
        images = F.pad(images, (radius,) * 4, mode="replicate")
        images = F.avg_pool2d(images, (2 * radius + 1, 1), 1)
        images = F.avg_pool2d(images, (1, 2 * radius + 1), 1)
    return images
