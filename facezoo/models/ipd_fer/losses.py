"""Losses of IPD-FER.

Source: Jiang & Deng, "Disentangling Identity and Pose for Facial Expression Recognition", Sec. 3.
The paper takes its identity encoder from face recognition on CASIA-WebFace; the three losses that
train ours from a teacher's embeddings are not in the paper and say so.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def expression_loss(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of the expression classifier: L_exp, eq. (5).

    The paper's targets are one class per image; ours may be a distribution, such as the shares of
    the annotators' votes, of which one class is the special case.

    Args:
        logits: C_exp(E_exp(x)), (B, K).
        targets: probabilities, rows sum to one, (B, K).
        weights: trust in each row, (B,); None for equal trust.

    Returns:
        Scalar: the weighted mean over the batch.
    """
    losses = -(targets * F.log_softmax(logits.float(), -1)).sum(-1)
    if weights is None:
        return losses.mean()
    return (losses * weights).sum() / weights.sum().clamp(min=1e-6)


def teacher_loss(predicted: Tensor, teacher: Tensor) -> Tensor:
    """One minus the mean cosine between predicted and teacher embeddings (not in the paper).

    Args:
        predicted: (B, D).
        teacher: centred embeddings of a face recogniser, (B, D).

    Returns:
        Scalar in [0, 2]; 0 when every pair is parallel.
    """
    return (1 - F.cosine_similarity(predicted.float(), teacher, dim=-1)).mean()


def similarity_matching_loss(features: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the pairwise cosines of a batch (not in the paper).

    What is compared downstream is cosines of the feature itself, not of a projection of it.
    Source: "similarity-preserving" distillation in the manner of Park et al., "Relational
    Knowledge Distillation", CVPR 2019, with cosines for distances.

    Args:
        features: f_id, (B, D).
        teacher: centred embeddings of a face recogniser, (B, D').

    Returns:
        Scalar; 0 when the two geometries agree. Pairs of a face with itself do not count.
    """
    ours, theirs = F.normalize(features.float(), dim=-1), F.normalize(teacher, dim=-1)
    difference = (ours @ ours.T - theirs @ theirs.T).square()
    count = len(features)
    return (difference.sum() - difference.diagonal().sum()) / (count * (count - 1))


def margin_loss(
    features: Tensor, centres: Tensor, labels: Tensor, scale: float = 32.0, margin: float = 0.2
) -> Tensor:
    """Large-margin cosine loss over named persons (not in the paper).

    Source: Wang et al., "CosFace", CVPR 2018, eq. (4).

    Args:
        features: f_id, (B, D).
        centres: one weight vector per person, (P, D).
        labels: person of each row, -1 for rows that do not count, (B,).
        scale: s.
        margin: m, subtracted from the cosine of the true person.

    Returns:
        Scalar; 0 if no row counts.
    """
    known = labels >= 0
    if not bool(known.any()):
        return features.sum() * 0
    cosines = F.normalize(features[known].float(), dim=-1) @ F.normalize(centres, dim=-1).T
    shifted = cosines - margin * F.one_hot(labels[known], len(centres))
    return F.cross_entropy(torch.mul(shifted, scale), labels[known])
