"""Classification scores from predicted and true classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def confusion(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """How often each true class (row) was called each class (column), int64, (K, K)."""
    return torch.bincount(truth * classes + predicted, minlength=classes**2).view(classes, classes)


def is_right(probabilities: Tensor, truth: Tensor) -> Tensor:
    """Whether the most probable class is the true one; never where nothing was predicted.

    Args:
        probabilities: (N, K); a row of NaN stands for no prediction.
        truth: class of each row, (N,).

    Returns:
        bool, (N,).
    """
    known = torch.isfinite(probabilities).all(1)
    return known & (probabilities.nan_to_num().argmax(1) == truth)


def confusion_of(probabilities: Tensor, truth: Tensor) -> Tensor:
    """Confusion matrix of the most probable classes.

    Args:
        probabilities: (N, K); a row of NaN stands for no prediction.
        truth: class of each row, (N,).

    Returns:
        int64, true classes in rows; the last column counts where nothing was predicted, (K, K + 1).
    """
    classes = probabilities.shape[1]
    missing = ~torch.isfinite(probabilities).all(1)
    predicted = probabilities.nan_to_num().argmax(1).masked_fill(missing, classes)
    return confusion(predicted, truth, classes + 1)[:classes]


def accuracy(counts: Tensor) -> float:
    """Share of a confusion matrix, (K, K) or as ``confusion_of`` gives it, on its diagonal."""
    return float(counts.diagonal().sum() / counts.sum())


def recalls(counts: Tensor) -> Tensor:
    """Share of each class that was called right, NaN for a class that does not occur, (K,)."""
    return counts.diagonal() / counts.sum(1)


def balanced_accuracy(counts: Tensor) -> float:
    """Mean over the classes that occur of the share that was called right."""
    return float(recalls(counts).nanmean())


def macro_f1(counts: Tensor) -> float:
    """Mean F1 over the classes that occur or were predicted; 0 for one that is never right."""
    present = counts.sum(0)[: len(counts)] + counts.sum(1)
    return float((2 * counts.diagonal()[present > 0] / present[present > 0]).mean())


def vote_divergence(probabilities: Tensor, votes: Tensor) -> float:
    """Mean Kullback-Leibler divergence of predictions from the annotators' votes, nats.

    Args:
        probabilities: predictions, (N, K).
        votes: shares of the votes, rows sum to one, (N, K).
    """
    return float(F.kl_div(probabilities.clamp(min=1e-9).log(), votes, reduction="batchmean"))


def expected_calibration_error(probabilities: Tensor, truth: Tensor, bins: int = 15) -> float:
    """How far the top probability is from the share of right answers: ECE.

    Source: Guo et al., "On Calibration of Modern Neural Networks" (2017), eq. (3): the mean over
    the rows of |accuracy - mean top probability| of the bin that a row is in. Bins are equally
    wide; the m-th of M holds top probabilities in ((m - 1) / M, m / M].

    Args:
        probabilities: (N, K), without rows of NaN.
        truth: class of each row, (N,).
        bins: M, how many bins.

    Returns:
        In [0, 1]; 0 if every bin is as often right as it says.

    Raises:
        ValueError: if there are no rows or no bins, or a row is not of probabilities.
    """
    if bins < 1 or not len(probabilities):
        raise ValueError(
            f"expected_calibration_error got {len(probabilities)} rows and bins={bins}; give one "
            "or more of each"
        )
    top, predicted = probabilities.double().max(1)
    # The comparison is false for NaN too; half-precision softmax may end a little above one.
    if not bool(((top > 0) & (top < 1.01)).all()):
        raise ValueError(
            f"expected_calibration_error got top probabilities from {float(top.min()):.3g} to "
            f"{float(top.max()):.3g}; give probabilities in [0, 1], of rows with a prediction only"
        )
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.double)[1:-1].to(top.device)
    place = torch.bucketize(top, edges)
    gap = (predicted == truth).double() - top
    return float(gap.new_zeros(bins).index_add(0, place, gap).abs().sum() / len(gap))


def scores(probabilities: Tensor, truth: Tensor) -> dict[str, float]:
    """Accuracy, balanced accuracy and macro-F1 of predictions.

    Args:
        probabilities: (N, K); a row of NaN, where nothing was predicted, counts as wrong, and in
            macro-F1 as called by no class.
        truth: class of each row, (N,).

    Returns:
        Values in [0, 1] by name.
    """
    counts = confusion_of(probabilities, truth)
    return {
        "accuracy": accuracy(counts),
        "balanced accuracy": balanced_accuracy(counts),
        "macro-F1": macro_f1(counts),
    }
