"""Classification scores from predicted and true classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def confusion(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """How often each true class (row) was called each class (column), int64, (K, K)."""
    return torch.bincount(truth * classes + predicted, minlength=classes**2).view(classes, classes)


def accuracy(counts: Tensor) -> float:
    """Share of a confusion matrix (K, K) on its diagonal."""
    return float(counts.diagonal().sum() / counts.sum())


def balanced_accuracy(counts: Tensor) -> float:
    """Mean over the classes that occur of the share that was called right."""
    occurs = counts.sum(1) > 0
    return float((counts.diagonal()[occurs] / counts.sum(1)[occurs]).mean())


def macro_f1(counts: Tensor) -> float:
    """Mean F1 over the classes that occur or were predicted; 0 for one that is never right."""
    present = counts.sum(0) + counts.sum(1)
    return float((2 * counts.diagonal()[present > 0] / present[present > 0]).mean())


def vote_divergence(probabilities: Tensor, votes: Tensor) -> float:
    """Mean Kullback-Leibler divergence of predictions from the annotators' votes, nats.

    Args:
        probabilities: predictions, (N, K).
        votes: shares of the votes, rows sum to one, (N, K).
    """
    return float(F.kl_div(probabilities.clamp(min=1e-9).log(), votes, reduction="batchmean"))


def scores(probabilities: Tensor, truth: Tensor) -> dict[str, float]:
    """Accuracy, balanced accuracy and macro-F1 of predictions.

    Args:
        probabilities: (N, K); a row of NaN, where nothing was predicted, counts as wrong.
        truth: class of each row, (N,).

    Returns:
        Values in [0, 1] by name.
    """
    classes = probabilities.shape[1]
    predicted = probabilities.nan_to_num().argmax(1)
    missing = ~torch.isfinite(probabilities).all(1)
    # No prediction is a wrong one: call it any class but the true one.
    predicted = torch.where(missing, (truth + 1) % classes, predicted)
    counts = confusion(predicted, truth, classes)
    return {
        "accuracy": accuracy(counts),
        "balanced accuracy": balanced_accuracy(counts),
        "macro-F1": macro_f1(counts),
    }
