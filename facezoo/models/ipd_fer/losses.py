"""Losses of IPD-FER, equations (1) to (12).

Source: Jiang & Deng, "Disentangling Identity and Pose for Facial Expression Recognition", Sec. 3.
An L1 norm of the paper is a mean over the entries here, so that no weight depends on a size.
Targets are distributions over the classes, such as the shares of the annotators' votes; the paper's
single class is a special case.

Losses that are not in the paper are marked so. They train the identity encoder from a teacher's
embeddings, where the paper takes an encoder from face recognition on CASIA-WebFace, and the decoder
on pairs of images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def expression_loss(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, prior: Tensor | None = None
) -> Tensor:
    """Compute the cross-entropy with distributions as targets: L_exp, eq. (5).

    Equations (8) and (10) are the same loss, with the logits of D on real and on generated crops.

    Args:
        logits: C_exp(E_exp(x)), (B, K).
        targets: probabilities, rows sum to one, (B, K).
        weights: trust in each row, (B,); None for equal trust.
        prior: added to the logits, so that the classifier learns what the frequency of the classes
            does not explain, (K,); None for the paper's loss. Source of this logit adjustment:
            Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, eq. (10).

    Returns:
        Scalar: the weighted mean over the batch.
    """
    adjusted = logits.float() if prior is None else logits.float() + prior
    losses = -(targets * F.log_softmax(adjusted, -1)).sum(-1)
    if weights is None:
        return losses.mean()
    return (losses * weights).sum() / weights.sum().clamp(min=1e-6)


def reconstruction_loss(full: Tensor, neutral: Tensor, real: Tensor, is_neutral: Tensor) -> Tensor:
    """Compute the L1 distance of generated crops from the real one: L_recon, eq. (1).

    Args:
        full: G_dec(f_id + f_pose + f_exp), (B, 3, H, W).
        neutral: G_dec(f_id + f_pose), (B, 3, H, W); counts only where the real face is neutral.
        real: x, (B, 3, H, W).
        is_neutral: 1[y_e = c], bool, (B,).

    Returns:
        Scalar: mean over the batch, rows that are not neutral included as zeros in the second term.
    """
    whole = (full.float() - real).abs().mean()
    parts = (neutral.float() - real).abs().mean((1, 2, 3))
    return whole + (parts * is_neutral).mean()


def identity_consistency_loss(full: Tensor, neutral: Tensor, real: Tensor) -> Tensor:
    """Compute the L1 distance between f_id of generated and real crops: L_id, eq. (2).

    Args:
        full: N(G_dec(f_id + f_pose + f_exp)), (B, D).
        neutral: N(G_dec(f_id + f_pose)), (B, D).
        real: N(x), (B, D).
    """
    return (full.float() - real).abs().mean() + (neutral.float() - real).abs().mean()


def orthogonality_loss(identity: Tensor, expression: Tensor) -> Tensor:
    """Compute the mean absolute cosine between paired features: L_cos, eq. (3).

    Args:
        identity: f_id, (B, D).
        expression: f_exp, (B, D).

    Returns:
        Scalar in [0, 1]; 0 when every pair is orthogonal.
    """
    return F.cosine_similarity(identity.float(), expression.float(), dim=-1).abs().mean()


def confusion_loss(pose_logits: Tensor) -> Tensor:
    """Compute the cross-entropy of the uniform distribution: L_confusion, eq. (4).

    Args:
        pose_logits: C_p(E_exp(x)), (B, K_P).

    Returns:
        Scalar, at least log K_P; that much if f_exp does not show the pose.
    """
    return -F.log_softmax(pose_logits.float(), -1).mean()


def pose_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the cross-entropy of the pose classifier: L_pose, eq. (6).

    Args:
        logits: C_p(E_pose(x)), (B, K_P).
        labels: pose class of Table 1, -1 where unknown, int64, (B,).

    Returns:
        Scalar: mean over the rows of known pose, 0 if there is none.
    """
    known = labels >= 0
    if not bool(known.any()):
        return logits.sum() * 0
    return F.cross_entropy(logits[known].float(), labels[known])


def classification_loss(expression: Tensor, pose: Tensor) -> Tensor:
    """Add the two scalars: L_c = L_exp + L_pose, eq. (7)."""
    return expression + pose


def discriminator_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the cross-entropy of D(x) with the real expression, (B, K): L^r_exp, eq. (8)."""
    return expression_loss(logits, targets)


def fake_neutral_loss(logits: Tensor, neutral: int) -> Tensor:
    """Compute the cross-entropy of neutral for D on neutralized crops, (B, K): L^f_neu, eq. (9)."""
    return -F.log_softmax(logits.float(), -1)[:, neutral].mean()


def fake_expression_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute ``discriminator_loss`` of D on reconstructed crops, (B, K): L^f_exp, eq. (10)."""
    return expression_loss(logits, targets)


def generative_loss(
    terms: tuple[Tensor, Tensor, Tensor, Tensor],
    lambdas: tuple[float, float, float, float] = (0.001, 0.001, 1.0, 10.0),
) -> Tensor:
    """Compute L'_G = λ1 L^f_neu + λ2 L^f_exp + λ3 L_id + λ4 L_recon, eq. (11); λ of Sec. 4.2."""
    return torch.stack([w * t for w, t in zip(lambdas, terms, strict=True)]).sum()


def generator_loss(
    generative: Tensor,
    classification: Tensor,
    orthogonality: Tensor,
    confusion: Tensor,
    betas: tuple[float, float] = (0.5, 1.0),
) -> Tensor:
    """Compute L_G = L'_G + L_c + β1 L_cos + β2 L_confusion, eq. (12); β of Sec. 4.2."""
    return generative + classification + betas[0] * orthogonality + betas[1] * confusion


def pose_regression_loss(predicted: Tensor, poses: Tensor) -> Tensor:
    """Compute the mean absolute error of yaw, pitch, roll and size (not in the paper).

    Args:
        predicted: (B, 4).
        poses: of ``crop_pose``; NaN where unknown, (B, 4).

    Returns:
        Scalar: mean over the rows of known pose, 0 if there is none.
    """
    known = torch.isfinite(poses).all(1)
    errors = (predicted.float() - poses.nan_to_num()).abs().mean(1)
    return (errors * known).sum() / known.sum().clamp(min=1)


def pair_loss(
    images: Tensor,
    targets: Tensor,
    layers: tuple[list[Tensor], list[Tensor]],
    weights: Tensor | None = None,
) -> Tensor:
    """Compute the distance of images in pixels, edges and feature maps (not in the paper).

    Source: Johnson et al., "Perceptual Losses for Real-Time Style Transfer and Super-Resolution",
    ECCV 2016, on features of unit length as in LPIPS (Zhang et al., CVPR 2018).

    Args:
        images: generated, (B, 3, H, W).
        targets: real, (B, 3, H, W).
        layers: feature maps of both, or of some of both, each (B', C, h, w).
        weights: weights of the pixels, (H, W); None for equal ones.

    Returns:
        Scalar: the mean absolute difference of pixels, of neighbors' differences, and the mean over
        layers of the squared difference of features.
    """
    difference = images.float() - targets
    if weights is not None:
        difference = difference * weights
    pixels = difference.abs().mean()
    pixels = pixels + sum(difference.diff(dim=dim).abs().mean() for dim in (2, 3))
    distances = [
        (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1).mean()
        for a, b in zip(*layers, strict=True)
    ]
    return pixels + torch.stack(distances).mean()


def swap_loss(
    features: tuple[Tensor, Tensor], sources: tuple[Tensor, Tensor], logits: tuple[Tensor, Tensor]
) -> Tensor:
    """Compute the distance of a swap from its identity and its expression (not in the paper).

    Args:
        features: E_id and E_exp of G_dec(f_id(A) + f_pose(A) + f_exp(B)), each (B, D).
        sources: f_id(A) and f_exp(B), each (B, D).
        logits: C_exp of the swap and of B, (B, K).

    Returns:
        Scalar: one minus the cosines, and the divergence of the expressions.
    """
    identity, expression = (
        (1 - F.cosine_similarity(a.float(), b.float(), dim=-1)).mean()
        for a, b in zip(features, sources, strict=True)
    )
    swapped, source = (F.log_softmax(x.float(), -1) for x in logits)
    divergence = F.kl_div(swapped, source, log_target=True, reduction="batchmean")
    return identity + expression + divergence


def teacher_loss(predicted: Tensor, teacher: Tensor) -> Tensor:
    """Compute one minus the mean cosine with the teacher's embeddings (not in the paper).

    Args:
        predicted: (B, D).
        teacher: centered embeddings of a face recognizer, (B, D).

    Returns:
        Scalar in [0, 2]; 0 when every pair is parallel.
    """
    return (1 - F.cosine_similarity(predicted.float(), teacher, dim=-1)).mean()


def similarity_matching_loss(
    features: Tensor, teacher: Tensor, past: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Compute the mean squared difference of cosines with other faces (not in the paper).

    What is compared downstream is cosines of the feature itself, not of a projection of it.
    Source: Tung & Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, with cosines for
    its products and without the pairs of a row with itself.

    Args:
        features: f_id, (B, D).
        teacher: centered embeddings of a face recognizer, (B, D').
        past: both of earlier batches, (Q, D) and (Q, D'); None compares within the batch alone.

    Returns:
        Scalar; 0 when the two geometries agree. Pairs of a face with itself do not count.
    """
    ours, theirs = _cosines(features, teacher, past)
    return (ours - theirs).square().mean()


def similarity_ranking_loss(
    features: Tensor,
    teacher: Tensor,
    past: tuple[Tensor, Tensor] | None = None,
    temperature: float = 0.05,
) -> Tensor:
    """Compute the divergence of the nearest faces from the teacher's (not in the paper).

    Source: Fang et al., "SEED: Self-supervised Distillation for Visual Representation", ICLR 2021,
    eq. (4), less the entropy of the teacher, which has no gradient.

    Args:
        features: f_id, (B, D).
        teacher: centered embeddings of a face recognizer, (B, D').
        past: both of earlier batches, (Q, D) and (Q, D'); None compares within the batch alone.
        temperature: divides the cosines of both; smaller looks at the nearest faces only.

    Returns:
        Scalar, at least 0.
    """
    ours, theirs = (cosines / temperature for cosines in _cosines(features, teacher, past))
    difference = F.log_softmax(theirs, -1) - F.log_softmax(ours, -1)
    return (F.softmax(theirs, -1) * difference).sum(-1).mean()


def _cosines(
    features: Tensor, teacher: Tensor, past: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Cosines of each row with every other row and with the past ones, (B, B - 1 + Q), of both."""
    count = len(features)
    others = ~torch.eye(count, dtype=torch.bool, device=features.device)
    result = []
    for index, rows in enumerate((features.float(), teacher)):
        rows = F.normalize(rows, dim=-1)
        cosines = (rows @ rows.T)[others].view(count, count - 1)
        if past is not None:
            cosines = torch.cat([cosines, rows @ F.normalize(past[index], dim=-1).T], 1)
        result.append(cosines)
    return result[0], result[1]


def same_identity_loss(first: Tensor, second: Tensor) -> Tensor:
    """Compute one minus the mean cosine of two images per identity (not in the paper).

    Args:
        first: f_id of one image, (P, D).
        second: f_id of another image of the same identity, (P, D).

    Returns:
        Scalar in [0, 2]; 0 when the two agree, whatever the expressions.
    """
    return (1 - F.cosine_similarity(first.float(), second.float(), dim=-1)).mean()


def margin_loss(
    features: Tensor, centers: Tensor, labels: Tensor, scale: float = 32.0, margin: float = 0.2
) -> Tensor:
    """Compute the large-margin cosine loss over named identities (not in the paper).

    Source: Wang et al., "CosFace", CVPR 2018, eq. (4).

    Args:
        features: f_id, (B, D).
        centers: one weight vector per identity, (P, D).
        labels: person of each row, -1 for rows that do not count, (B,).
        scale: s.
        margin: m, subtracted from the cosine of the true person.

    Returns:
        Scalar; 0 if no row counts.
    """
    known = labels >= 0
    if not bool(known.any()):
        return features.sum() * 0
    cosines = F.normalize(features[known].float(), dim=-1) @ F.normalize(centers, dim=-1).T
    shifted = cosines - margin * F.one_hot(labels[known], len(centers))
    return F.cross_entropy(torch.mul(shifted, scale), labels[known])
