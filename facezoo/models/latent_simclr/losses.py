"""Losses of the Feature-Style encoder and of SimCLR.

Sources: Yao et al., "Feature-Style Encoder for Style-Based GAN Inversion", ECCV 2022, and Chen et
al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020. The losses
of the encoder were written from a description of the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def image_loss(images: Tensor, targets: Tensor) -> Tensor:
    """Mean squared difference of pixels.

    Args:
        images: what the generator gave, (B, 3, S, S).
        targets: what it should have given, (B, 3, S, S).

    Returns:
        Scalar.
    """
    return (images.float() - targets.float()).square().mean()


def perceptual_loss(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Distance of deep maps, summed over them; for several scales, give the maps of each.

    Maps are compared as in LPIPS (Zhang et al., CVPR 2018, eq. (1)) with equal weights: the
    channels of every pixel are scaled to length one, and the squared difference is summed over
    channels and averaged over pixels.

    Args:
        ours: maps of images by a frozen network, each (B, C, H, W).
        theirs: maps of what the images should be; no gradient goes there.

    Returns:
        Scalar: the mean over the batch.
    """
    gaps = [
        (F.normalize(a.float(), dim=1) - F.normalize(b.detach().float(), dim=1)).square().sum(1)
        for a, b in zip(ours, theirs, strict=True)
    ]
    return torch.stack([gap.mean() for gap in gaps]).sum()


def identity_loss(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """One minus the cosine of a face recogniser's features, summed over its layers.

    Args:
        ours: features of images by a frozen face recogniser, each (B, ...); they are flattened.
        theirs: features of what the images should be; no gradient goes there.

    Returns:
        Scalar: the mean over the batch; 0 when all features are parallel.
    """
    cosines = [
        F.cosine_similarity(a.float().flatten(1), b.detach().float().flatten(1), dim=1)
        for a, b in zip(ours, theirs, strict=True)
    ]
    return (1 - torch.stack(cosines)).mean(1).sum()


def feature_loss(feature: Tensor, generated: Tensor) -> Tensor:
    """Mean squared difference of f and the generator's own feature at layer K.

    It keeps f where the generator's layers expect it, which editing needs.

    Args:
        feature: f, (B, C, H, H).
        generated: what layer K gives for the codes w of the same images, (B, C, H, H).

    Returns:
        Scalar.
    """
    return (feature.float() - generated.float()).square().mean()


def nt_xent_loss(first: Tensor, second: Tensor, temperature: float = 0.5) -> Tensor:
    """Normalised temperature-scaled cross-entropy of two views: Chen et al., eq. (1).

    Row i of one view and row i of the other are a positive pair; the other 2 B - 2 rows are its
    negatives.

    Args:
        first: z of one view, (B, D).
        second: z of the other view of the same samples, (B, D).
        temperature: tau.

    Returns:
        Scalar: the mean over all 2 B ordered pairs.
    """
    rows = F.normalize(torch.cat([first, second]).float(), dim=1)
    with torch.autocast(rows.device.type, enabled=False):
        logits = rows @ rows.T / temperature
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    partners = torch.arange(len(rows), device=rows.device).roll(len(first))
    return F.cross_entropy(logits.masked_fill(itself, -torch.inf), partners)
