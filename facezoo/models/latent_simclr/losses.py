"""Losses of the Feature-Style encoder and of SimCLR.

Sources: Yao et al., "Feature-Style Encoder for Style-Based GAN Inversion", ECCV 2022, and Chen et
al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020. The losses
of the encoder were written from a description of the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Extractor = Callable[[Tensor], Sequence[Tensor]]
"""Images (B, 3, H, W) to features of several layers, each (B, ...)."""


def image_loss(images: Tensor, targets: Tensor) -> Tensor:
    """Mean squared difference of pixels.

    Args:
        images: what the generator gave, (B, 3, S, S).
        targets: what it should have given, (B, 3, S, S).

    Returns:
        Scalar.
    """
    return (images.float() - targets.float()).square().mean()


def perceptual_loss(
    images: Tensor, targets: Tensor, extractor: Extractor, scales: int = 3
) -> Tensor:
    """Distance of deep features of images at several scales, summed over layers and scales.

    Features are compared as in LPIPS (Zhang et al., CVPR 2018, eq. (1)) with equal weights: the
    channels of every pixel are scaled to length one, and the squared difference is summed over
    channels and averaged over pixels.

    Args:
        images: (B, 3, S, S).
        targets: (B, 3, S, S); no gradient goes there.
        extractor: a frozen network; its features are (B, C, H, W).
        scales: the images are compared at their own size, half of it, and so on.

    Returns:
        Scalar: the mean over the batch.
    """
    total = images.new_zeros((), dtype=torch.float32)
    for scale in range(scales):
        ours = extractor(F.avg_pool2d(images, 2**scale))
        with torch.no_grad():
            theirs = extractor(F.avg_pool2d(targets, 2**scale))
        for a, b in zip(ours, theirs, strict=True):
            difference = F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)
            total = total + difference.square().sum(1).mean()
    return total


def identity_loss(images: Tensor, targets: Tensor, extractor: Extractor) -> Tensor:
    """One minus the cosine of a face recogniser's features, summed over its layers.

    Args:
        images: (B, 3, S, S), as the recogniser wants them.
        targets: (B, 3, S, S); no gradient goes there.
        extractor: a frozen face recogniser; its features are flattened.

    Returns:
        Scalar: the mean over the batch; 0 when all features are parallel.
    """
    with torch.no_grad():
        theirs = extractor(targets)
    cosines = [
        F.cosine_similarity(a.float().flatten(1), b.float().flatten(1), dim=1)
        for a, b in zip(extractor(images), theirs, strict=True)
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
