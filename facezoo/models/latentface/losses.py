"""Losses of LatentFace.

Source: He et al., LatentFace, eq. (1) to (10). Eq. (1) and (2), the two reconstructions, are
``LatentFace.reconstruct_both``; eq. (3), the noise, is ``diffusion.add_noise``.
"""

from __future__ import annotations

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from facezoo.models.latentface.diffusion import alphas_cumprod

MIN_SIGMA = 1e-6
"""Smallest σ, so that a confident network cannot divide by 0."""


def confidence_loss(predicted: Tensor, target: Tensor, sigma: Tensor, mask: Tensor) -> Tensor:
    """Compute the negative log-likelihood under a Laplace distribution: L_conf, eq. (7).

    The summand of eq. (7) is ln √2σ + √2 |Î - I| / σ. The mean is over the channels as well.

    Args:
        predicted: Î, or features of it, (B, C, H, W).
        target: I, or features of it, (B, C, H, W).
        sigma: σ, above 0, (B, 1, H, W).
        mask: Ω, 1 where the face was rendered, (B, 1, H, W).

    Returns:
        Scalar, which may be negative; 0 for an empty mask.
    """
    sigma = sigma.float().clamp(min=MIN_SIGMA)
    difference = (predicted.float() - target.float()).abs()
    losses = torch.log(sqrt(2) * sigma) + sqrt(2) * difference / sigma
    weights = mask.to(losses.dtype).expand_as(losses)
    return (losses * weights).sum() / weights.sum().clamp(min=1)


def feature_map_loss(
    predicted_maps: Tensor, target_maps: Tensor, sigma: Tensor, mask: Tensor
) -> Tensor:
    """Compute the same loss between feature maps: L_f, eq. (6).

    The paper's features are relu3_3 of a VGG-16 (Sec. 5.2) or a VGG-19 (Sec. 5.3); any network that
    returns maps can be used. The loss of Unsup3D, which the paper cites, has a Gaussian here.

    Args:
        predicted_maps: of Î, (B, C, H, W).
        target_maps: of I, (B, C, H, W).
        sigma: σ_f, (B, 1, H', W'); resized to the maps' size if needed.
        mask: Ω, (B, 1, S, S); each map position is weighted by its share of face pixels.
    """
    size = (predicted_maps.shape[-2], predicted_maps.shape[-1])
    if tuple(sigma.shape[-2:]) != size:
        sigma = F.interpolate(sigma, size, mode="bilinear", align_corners=False)
    share = F.adaptive_avg_pool2d(mask.to(sigma.dtype), size)
    return confidence_loss(predicted_maps, target_maps, sigma, share)


def reconstruction_loss(
    pixel: Tensor,
    feature: Tensor,
    flipped_pixel: Tensor,
    flipped_feature: Tensor,
    lambda_feature: float = 1.0,
    lambda_flip: float = 0.5,
) -> Tensor:
    """Compute the loss of the first stage: L, eq. (8) and (9).

    Args:
        pixel: L_p(Î, I), eq. (5): ``confidence_loss`` of the images.
        feature: L_f(Î, I).
        flipped_pixel: L_p(Î', I), with the second channel of σ_p.
        flipped_feature: L_f(Î', I), with the second channel of σ_f.
        lambda_feature: λ_f; 1 in Sec. 3.1.
        lambda_flip: λ_flip; 0.5 in Sec. 3.1.
    """
    straight = pixel + lambda_feature * feature
    return straight + lambda_flip * (flipped_pixel + lambda_feature * flipped_feature)


def denoising_loss(predicted: Tensor, clean: Tensor, weights: Tensor | None = None) -> Tensor:
    """Compute the loss of the second stage: eq. (4); with weights, eq. (10).

    Args:
        predicted: Ẑ_0, (B, D).
        clean: identity codes Z_0, (B, D).
        weights: w of each row from ``snr_weights``, (B,); None for eq. (4).

    Returns:
        Scalar, the batch mean of squared distances.
    """
    distances = (clean.float() - predicted.float()).square().sum(-1)
    return distances.mean() if weights is None else (weights * distances).mean()


def snr_weights(steps: Tensor, limit: float = float("inf")) -> Tensor:
    """Compute the signal-to-noise ratio of time steps: w_t = α_t² / (1 - α_t²), eq. (10).

    The paper's α_t² is ᾱ_t of eq. (3), as in Kingma et al., "Variational Diffusion Models". The
    ratio falls from 1e4 at the first step to 4e-5 at the last.

    Args:
        steps: t from 0 to T - 1, int64, (B,).
        limit: largest weight; the paper has none.

    Returns:
        (B,).
    """
    alphas = alphas_cumprod().to(steps.device)[steps]
    return (alphas / (1 - alphas)).clamp(max=limit)
