"""Losses of adv3d.

Source: Gu, Pears & Sun, "Adversarial 3D Face Disentanglement of Identity and Expression", Sec. III,
eqs. (5) to (8). A docstring notes where the authors' code decides what the paper leaves open.
Shapes: B batch, N vertices, L latent dimensions.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from facezoo.geometry.meshes import laplacian

SAME, DIFFERENT = 1, 0
"""Classes of the identity discriminator."""


def reconstruction_loss(offsets: Tensor, truth: Tensor) -> Tensor:
    """Compute L_recon: the mean squared error over batch, vertices and coordinates.

    Args:
        offsets: decoded offsets from the mean face, divided by the scale, (B, N, 3).
        truth: the mesh minus the mean face, (B, N, 3).
    """
    return F.mse_loss(offsets, truth)


def kl_loss(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """Estimate the KL divergence of a code from the unit Gaussian by one sample: eq. (5).

    The paper gives no estimator. The authors' code uses log q(z) − log p(z), whose expectation is
    the closed form.

    Args:
        z: a sample of N(mean, exp(logvar)), (B, L).
        mean: (B, L).
        logvar: (B, L).

    Returns:
        Scalar, summed over the code, averaged over the batch. It can be negative.
    """
    log_q = -0.5 * (logvar + (z - mean).square() / logvar.exp())
    log_p = -0.5 * z.square()
    return (log_q - log_p).sum(1).mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Compute the cross-entropy of the identity discriminator: eq. (8).

    The paper prints log D of the fake pair as the second term. This is log(1 − D), as in eq. (6).

    Args:
        real: log-probabilities of pairs of one identity, (B, 2).
        fake: log-probabilities of meshes with their decoded identity, (B, 2).

    Returns:
        Scalar, the mean over both.
    """
    return -(real[:, SAME].mean() + fake[:, DIFFERENT].mean()) / 2


def adversarial_loss(fake: Tensor) -> Tensor:
    """Compute L_DID: the loss of decoded identities that the discriminator rejects.

    The authors' code minimizes the cross-entropy towards "same", not the minimax of eq. (6).

    Args:
        fake: log-probabilities of meshes with their decoded identity, (B, 2).
    """
    return -fake[:, SAME].mean()


def neutral_loss(z_id: Tensor, again: Tensor) -> Tensor:
    """Compute L_neu: the mean absolute difference of z_id and its decoded face's code, (B, L)."""
    return F.l1_loss(again, z_id)


def independence_loss(identity: Tensor, expression: Tensor, covariance: Tensor) -> Tensor:
    """Compute the sum of squared cross-correlations between z_id and z_exp.

    Ours. With identity labels only, an identity face can have an expression that all meshes of the
    identity share. Then z_exp must undo it, and correlates with z_id. The covariance is that of the
    whole training set, because correlations within a batch are mostly chance.

    Args:
        identity: weights of the mean of z_id on scores, (L, K).
        expression: weights of the mean of z_exp on scores, (L', K).
        covariance: of the scores of the training meshes, (K, K).
    """
    first, second = (
        ((weight @ covariance) * weight).sum(1).clamp(min=1e-12).sqrt() + 1e-3
        for weight in (identity, expression)
    )
    correlation = identity @ covariance @ expression.T / first[:, None] / second
    return correlation.square().sum()


def rest_loss(again: Tensor) -> Tensor:
    """Compute the mean absolute z_exp of decoded identities, which should have no expression.

    Ours, in addition to L_neu, which compares z_id only.

    Args:
        again: (B, L).
    """
    return again.abs().mean()


def laplacian_loss(vertices: Tensor, edges: Tensor) -> Tensor:
    """Compute L_lap: the roughness of meshes.

    The paper uses the norm of the Laplace-Beltrami operator; the authors' code the squared uniform
    graph Laplacian.

    Args:
        vertices: (B, N, 3).
        edges: from ``facezoo.geometry.meshes.edges_of``, (E, 2).

    Returns:
        Scalar, the squared length of (Lx)_v, averaged over vertices and the batch.
    """
    return laplacian(vertices, edges).square().sum(2).mean()
