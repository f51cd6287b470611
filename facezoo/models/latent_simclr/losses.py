"""Losses of the Feature-Style encoder and of SimCLR.

Sources: Yao et al., "Feature-Style Encoder for Style-Based GAN Inversion", ECCV 2022, and Chen et
al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020. The
encoder's losses follow a description of the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def image_loss(images: Tensor, targets: Tensor) -> Tensor:
    """Compute the mean squared error of the pixels of images, (B, 3, S, S)."""
    return (images.float() - targets.float()).square().mean()


def perceptual_loss(maps: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Compute the distance of feature maps, summed over maps and scales.

    As in LPIPS (Zhang et al., CVPR 2018, eq. (1)) with equal weights, the channels of each pixel
    are normalized; squared differences are summed over channels and averaged over pixels.

    Args:
        maps: feature maps of the images, each (B, C, H, W).
        targets: feature maps of the target images; they get no gradient.

    Returns:
        Scalar, the batch mean.
    """
    gaps = [
        (F.normalize(a.float(), dim=1) - F.normalize(b.detach().float(), dim=1)).square().sum(1)
        for a, b in zip(maps, targets, strict=True)
    ]
    return torch.stack([gap.mean() for gap in gaps]).sum()


def identity_loss(features: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Compute one minus the cosine of face recognition features, summed over layers.

    Args:
        features: features of the images, each (B, ...); they are flattened.
        targets: features of the target images; they get no gradient.

    Returns:
        Scalar, the batch mean; 0 if all features are parallel.
    """
    cosines = [
        F.cosine_similarity(a.float().flatten(1), b.detach().float().flatten(1), dim=1)
        for a, b in zip(features, targets, strict=True)
    ]
    return (1 - torch.stack(cosines)).mean(1).sum()


def feature_loss(feature: Tensor, generated: Tensor) -> Tensor:
    """Compute the mean squared error between f and the generator's own feature at layer K.

    It keeps f in the range of the generator's features, which editing needs.

    Args:
        feature: f, (B, C, H, H).
        generated: output of layer K for the codes w of the same images, (B, C, H, H).
    """
    return (feature.float() - generated.float()).square().mean()


def nt_xent_loss(first: Tensor, second: Tensor, temperature: float = 0.5) -> Tensor:
    """Compute the normalized temperature-scaled cross-entropy, Chen et al., eq. (1).

    Row i of both views is a positive pair; the other 2 B - 2 rows are its negatives.

    Args:
        first: z of one view, (B, D).
        second: z of the other view of the same samples, (B, D).
        temperature: temperature tau.

    Returns:
        Scalar, the mean over all 2 B ordered pairs.
    """
    rows = F.normalize(torch.cat([first, second]).float(), dim=1)
    with torch.autocast(rows.device.type, enabled=False):
        logits = rows @ rows.T / temperature
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    partners = torch.arange(len(rows), device=rows.device).roll(len(first))
    return F.cross_entropy(logits.masked_fill(itself, -torch.inf), partners)
