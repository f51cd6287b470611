"""Classification scores, accuracy by head yaw, and the comparison of two checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from facezoo.errors import explained_import

YAW_LIMITS_DEG = (10, 20, 30, 40)
"""Limits of Table 8 of IPD-FER's paper, degrees."""


def predicted_classes(probabilities: Tensor) -> Tensor:
    """Return the most probable class of each row, and -1 for a row with NaN (no prediction).

    Args:
        probabilities: (N, K).

    Returns:
        int64, (N,).
    """
    missing = ~torch.isfinite(probabilities).all(1)
    return probabilities.nan_to_num().argmax(1).masked_fill(missing, -1)


def confusion(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Count how often each true class (row) was predicted as each class (column).

    Args:
        predicted: class of each row, -1 for no prediction, (N,).
        truth: class of each row, (N,).
        classes: K.

    Returns:
        int64, (K, K + 1); the last column counts rows without a prediction.
    """
    predicted, truth = predicted.long(), truth.long()  # smaller integers would overflow
    columns = classes + 1
    flat = truth * columns + predicted.where(predicted >= 0, classes)
    return torch.bincount(flat, minlength=classes * columns).view(classes, columns)


def accuracy(counts: Tensor) -> float:
    """Compute the accuracy from a confusion matrix, (K, K) or (K, K + 1)."""
    return float(counts.diagonal().sum() / counts.sum())


def balanced_accuracy(counts: Tensor) -> float:
    """Compute the mean recall of the classes that occur from a confusion matrix."""
    return float((counts.diagonal() / counts.sum(1)).nanmean())


def macro_f1(counts: Tensor) -> float:
    """Compute the mean F1 of the classes that occur or are predicted from a confusion matrix."""
    total = counts.sum(0)[: len(counts)] + counts.sum(1)
    return float((2 * counts.diagonal() / total)[total > 0].mean())


def scores(predicted: Tensor, truth: Tensor) -> dict[str, float]:
    """Compute accuracy, balanced accuracy and macro-F1; a row without a prediction is wrong.

    Args:
        predicted: probabilities or logits, (N, K), or classes, (N,), where -1 is no prediction.
        truth: class of each row, (N,).

    Returns:
        Values in [0, 1] by name.

    Raises:
        ValueError: if there are not as many predictions as classes of rows.
    """
    if len(predicted) != len(truth):
        raise ValueError(f"there are {len(predicted)} predictions of {len(truth)} rows")
    if predicted.ndim == 2:
        counts = confusion(predicted_classes(predicted), truth, predicted.shape[1])
    else:
        counts = confusion(predicted, truth, int(torch.cat([predicted, truth]).max()) + 1)
    return {name: score(counts) for name, score in SCORES.items()}


SCORES: dict[str, Callable[[Tensor], float]] = {
    "accuracy": accuracy,
    "balanced accuracy": balanced_accuracy,
    "macro-F1": macro_f1,
}
"""Functions of a confusion matrix by name, whose counts may be fractions."""


def vote_divergence(logits: Tensor, votes: Tensor) -> float:
    """Compute the mean Kullback-Leibler divergence of predictions from annotators' votes.

    Args:
        logits: predictions before the softmax, (N, K).
        votes: shares of the votes, rows sum to one, (N, K).

    Returns:
        Nats.
    """
    return float(F.kl_div(logits.log_softmax(1), votes, reduction="batchmean"))


def expected_calibration_error(probabilities: Tensor, truth: Tensor, bins: int = 15) -> float:
    """Compute the expected calibration error (ECE).

    Source: Guo et al., "On Calibration of Modern Neural Networks" (2017), eq. (3): the mean over
    the rows of |accuracy - mean top probability| of the bin that a row is in. Bins have equal
    width; bin m of M covers top probabilities in ((m - 1) / M, m / M].

    Args:
        probabilities: (N, K), without rows of NaN.
        truth: class of each row, (N,).
        bins: number of bins, M.

    Returns:
        In [0, 1]; 0 if the accuracy in every bin equals its mean top probability.

    Raises:
        ValueError: if a row does not hold probabilities, or there are no rows or bins.
    """
    top, predicted = probabilities.double().max(1)
    # The comparison is false for NaN; a half-precision softmax may end a little above one.
    if bins < 1 or not len(top) or not bool(((top > 0) & (top < 1.01)).all()):
        raise ValueError(
            "expected_calibration_error needs one or more rows of probabilities in [0, 1], without "
            f"NaN, and bins of 1 or more; got shape {tuple(probabilities.shape)} and bins={bins}"
        )
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.double)[1:-1].to(top.device)
    place = torch.bucketize(top, edges)
    gap = (predicted == truth).double() - top
    return float(gap.new_zeros(bins).index_add(0, place, gap).abs().sum() / len(gap))


# --- head yaw -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class YawBin:
    """Accuracy on the faces beyond a yaw."""

    beyond_deg: int | None
    """Lower limit of |yaw|, degrees; None for all faces, also those of unknown yaw."""
    images: int
    accuracy: float
    """In [0, 1]; NaN if there are no such faces."""


def accuracy_by_yaw(probabilities: Tensor, truth: Tensor, yaw_deg: Tensor) -> list[YawBin]:
    """Compute the accuracy on all faces and on faces beyond 10, 20, 30 and 40 degrees of yaw.

    Source: Jiang & Deng, "Disentangling Identity and Pose for Facial Expression Recognition",
    Sec. 4.4, Table 8. The sets are nested, as in the paper.

    Args:
        probabilities: (N, K); a row of NaN (no prediction) is wrong.
        truth: class of each row, (N,).
        yaw_deg: NaN where it is unknown, (N,).

    Returns:
        All faces first, then by rising limit.
    """
    right = (predicted_classes(probabilities) == truth).double()
    subsets = [
        torch.ones_like(right, dtype=torch.bool),
        *(yaw_deg.abs() > d for d in YAW_LIMITS_DEG),
    ]
    return [
        YawBin(limit, int(rows.sum()), float(right[rows].mean()))
        for limit, rows in zip((None, *YAW_LIMITS_DEG), subsets, strict=True)
    ]


# --- two checkpoints on the same images -----------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints on the same images; the difference is the second minus the first."""

    images: int
    only_first: int
    """Images that only the first classifies correctly."""
    only_second: int
    """Images that only the second classifies correctly."""
    difference: float
    """Difference in accuracy, in [-1, 1]."""
    low: float
    """Lower end of the confidence interval."""
    high: float
    """Upper end of it."""
    confidence: float
    p_value: float
    """Two-sided p-value of McNemar's exact test."""

    def __str__(self) -> str:
        """Format as ``+0.70 (95 % interval -0.20 to +1.61, p = 0.134)``, in percentage points."""
        points = (100 * value for value in (self.difference, self.low, self.high))
        difference, low, high = (f"{value:+.2f}" for value in points)
        return (
            f"{difference} ({100 * self.confidence:.0f} % interval {low} to {high}, "
            f"p = {self.p_value:.3g})"
        )


def compare(
    first: Tensor,
    second: Tensor,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two checkpoints on the same images by a paired bootstrap and McNemar's exact test.

    The result holds for other images of this kind, not for another training with another seed.

    Args:
        first: True where the first classifies an image correctly, bool, (N,).
        second: the same for the second, in the same order, bool, (N,).
        confidence: level of the percentile interval, in (0, 1).
        resamples: bootstrap samples.
        seed: seed of the bootstrap.

    Raises:
        ImportError: if the extra ``[evaluate]`` is missing.
        ValueError: if the two are not of the same images, or there are none.
    """
    with explained_import("compare needs: pip install 'facezoo[evaluate]'"):
        from scipy.stats import binomtest, bootstrap
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(
            "compare needs two rows of N correct or wrong answers about the same images, got "
            f"{tuple(first.shape)} and {tuple(second.shape)}"
        )
    gain = second.cpu().numpy().astype(int) - first.cpu().numpy().astype(int)
    only_first, only_second = int((gain < 0).sum()), int((gain > 0).sum())
    differing = only_first + only_second
    interval = bootstrap(
        (gain,),
        np.mean,
        n_resamples=resamples,
        batch=500,
        confidence_level=confidence,
        method="percentile",
        rng=seed,
    ).confidence_interval
    return Comparison(
        images=len(gain),
        only_first=only_first,
        only_second=only_second,
        difference=(only_second - only_first) / len(gain),
        low=float(interval.low),
        high=float(interval.high),
        confidence=confidence,
        p_value=float(binomtest(only_second, differing).pvalue) if differing else 1.0,
    )
