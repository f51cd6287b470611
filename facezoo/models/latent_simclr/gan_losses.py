"""Losses and penalties of StyleGAN2.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020, Sec. 3
and App. B.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Compute the non-saturating generator loss: mean of -log sigmoid(D(G(z))), D(G(z)) (B, 1).

    Source: Goodfellow et al., "Generative Adversarial Nets", NIPS 2014, Sec. 3.
    """
    return F.softplus(-fake_logits.float()).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Compute the discriminator loss: mean of -log sigmoid(D(x)) - log(1 - sigmoid(D(G(z)))).

    Args:
        real_logits: D of real images, (B, 1).
        fake_logits: D of generated images, (B', 1).
    """
    return F.softplus(-real_logits.float()).mean() + F.softplus(fake_logits.float()).mean()


def r1_penalty(images: Tensor, logits: Tensor) -> Tensor:
    """Compute the R1 penalty: mean squared gradient norm at real images; weight gamma / 2.

    Source: Mescheder et al., "Which Training Methods for GANs do actually Converge?", ICML 2018,
    eq. (9).

    Args:
        images: real images that require gradients, (B, 3, S, S).
        logits: D of these images, (B, 1).

    Returns:
        Differentiable scalar.
    """
    (gradients,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradients.float().square().sum((1, 2, 3)).mean()


def path_lengths(images: Tensor, w_plus: Tensor, generator: Generator) -> Tensor:
    """Compute path lengths |J_w^T y| for random images y, App. B.

    Args:
        images: G(w), (B, 3, S, S).
        w_plus: their codes, which require gradients, (B, L, D).
        generator: random generator for y, which is normal and divided by S.

    Returns:
        Root mean square over the L styles, differentiable, (B,).
    """
    shape, device = images.shape, generator.device
    directions = torch.randn(shape, generator=generator, device=device).to(images)
    product = (images * directions).sum() / math.sqrt(shape[2] * shape[3])
    (gradients,) = torch.autograd.grad(product, w_plus, create_graph=True)
    return gradients.float().square().sum(2).mean(1).sqrt()


def path_length_penalty(lengths: Tensor, target: Tensor) -> Tensor:
    """Compute the path length penalty: mean squared difference from the running mean a, eq. (4).

    Args:
        lengths: ``path_lengths``, (B,).
        target: running mean a from ``update_path_length``, ().
    """
    return (lengths - target.detach()).square().mean()


def update_path_length(target: Tensor, lengths: Tensor, decay: float = 0.99) -> Tensor:
    """Update the running mean a of path lengths with one batch, ()."""
    return target.lerp(lengths.detach().mean(), 1 - decay)
