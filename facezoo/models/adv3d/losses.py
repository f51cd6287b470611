"""Losses of adv3d.

Source: Gu, Pears & Sun, "Adversarial 3D Face Disentanglement of Identity and Expression", Sec. III,
eqs. (5) to (8). Where the authors' code decides what the paper leaves open, the docstring says so.
Shapes: B batch, N vertices, L numbers of a latent code.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from facezoo.geometry.laplacian import laplacian

SAME, DIFFERENT = 1, 0
"""Classes of the identity discriminator."""


def reconstruction_loss(offsets: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error over batch, vertices and coordinates: L_recon.

    Args:
        offsets: decoded, from the mean face, divided by the scale, (B, N, 3).
        truth: the mesh minus the mean face, (B, N, 3).

    Returns:
        Scalar.
    """
    return F.mse_loss(offsets, truth)


def kl_loss(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """KL divergence of a code from the unit Gaussian, estimated from the one sample: eq. (5).

    The paper does not say how it is computed; the authors' code has this estimate
    log q(z) − log p(z), whose expectation is the closed form.

    Args:
        z: a sample of N(mean, exp(logvar)), (B, L).
        mean: (B, L).
        logvar: (B, L).

    Returns:
        Scalar: summed over the code, averaged over the batch. It can be negative.
    """
    log_q = -0.5 * (logvar + (z - mean).square() / logvar.exp())
    log_p = -0.5 * z.square()
    return (log_q - log_p).sum(1).mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Cross-entropy of the identity discriminator: eq. (8).

    Its second term is printed as log D of the fake pair; it is taken as log(1 − D), as in eq. (6).

    Args:
        real: log-probabilities of pairs of one person, (B, 2).
        fake: log-probabilities of meshes with their decoded identity, (B, 2).

    Returns:
        Scalar: the mean over both.
    """
    return -(real[:, SAME].mean() + fake[:, DIFFERENT].mean()) / 2


def adversarial_loss(fake: Tensor) -> Tensor:
    """What the decoded identity costs for not passing as the same person: L_DID.

    The authors' code minimises the cross-entropy towards "same" rather than the minimax of eq. (6).

    Args:
        fake: log-probabilities of meshes with their decoded identity, (B, 2).

    Returns:
        Scalar.
    """
    return -fake[:, SAME].mean()


def neutral_loss(z_id: Tensor, again: Tensor) -> Tensor:
    """Mean absolute difference of z_id and that of the decoded identity, encoded again: L_neu.

    Args:
        z_id: (B, L).
        again: z̄_id, (B, L).

    Returns:
        Scalar.
    """
    return F.l1_loss(again, z_id)


def independence_loss(identity: Tensor, expression: Tensor, covariance: Tensor) -> Tensor:
    """How much one code tells of the other: squared correlations of their numbers, summed.

    Ours. With identity labels alone, an identity face may wear an expression of its own that every
    mesh of the person shares; z_exp then has to undo it, and is correlated with z_id. Taken over
    the whole training set, for correlations within a batch are mostly chance, which a number of
    the code can escape only by falling silent.

    Args:
        identity: weights of the mean of z_id on scores, (L, K).
        expression: weights of the mean of z_exp on scores, (L', K).
        covariance: of the scores of the training meshes, (K, K).

    Returns:
        Scalar.
    """
    first, second = (
        ((weight @ covariance) * weight).sum(1).clamp(min=1e-12).sqrt() + 1e-3
        for weight in (identity, expression)
    )
    correlation = identity @ covariance @ expression.T / first[:, None] / second
    return correlation.square().sum()


def rest_loss(again: Tensor) -> Tensor:
    """Mean absolute z_exp of decoded identities, encoded again: they shall wear no expression.

    Ours, beside L_neu, which compares z_id alone.

    Args:
        again: (B, L).

    Returns:
        Scalar.
    """
    return again.abs().mean()


def laplacian_loss(vertices: Tensor, edges: Tensor) -> Tensor:
    """Roughness of meshes: L_lap.

    The paper writes the norm of the Laplace-Beltrami operator; the authors' code has the uniform
    graph Laplacian, squared.

    Args:
        vertices: (B, N, 3).
        edges: see ``facezoo.geometry.laplacian.edges_of``, (E, 2).

    Returns:
        Scalar: the squared length of (Lx)_v, averaged over vertices and the batch.
    """
    return laplacian(vertices, edges).square().sum(2).mean()
