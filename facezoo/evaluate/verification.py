"""Face verification: are two photographs of the same person?"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from facezoo.evaluate.probes import fit_logistic


@dataclass(frozen=True)
class Pairs:
    """Pairs of photographs by file name."""

    first: list[str]
    """P file names."""
    second: list[str]
    """P file names."""
    same: Tensor
    """Whether each pair shows one person, bool, (P,)."""
    fold: Tensor
    """Fold of each pair; no person is in two folds, (P,)."""


def read_pairs(path: str | Path) -> Pairs:
    """Pairs from a CSV file with the columns file_a, file_b, same (0 or 1), fold.

    Raises:
        ValueError: if a pair says neither 0 nor 1.
    """
    with Path(path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows, 1):
        if row["same"] not in ("0", "1"):
            raise ValueError(f"pair {number} of {path}: same must be 0 or 1, got {row['same']!r}")
    return Pairs(
        [row["file_a"] for row in rows],
        [row["file_b"] for row in rows],
        torch.tensor([row["same"] == "1" for row in rows]),
        torch.tensor([int(row["fold"]) for row in rows]),
    )


def ten_fold_accuracy(similarity: Tensor, same: Tensor, fold: Tensor) -> tuple[float, float]:
    """Accuracy over folds, the threshold of each chosen on the others.

    Source: the protocol of Labeled Faces in the Wild (Huang et al. 2007), Sec. "restricted".

    Args:
        similarity: larger means more alike, (P,).
        same: ground truth, bool, (P,).
        fold: fold of each pair, (P,).

    Returns:
        Mean and population standard deviation over the folds, in [0, 1].

    Raises:
        ValueError: if there is one fold only.
    """
    accuracies = []
    for held_out in _folds(fold):
        rest = fold != held_out
        threshold = best_threshold(similarity[rest], same[rest])
        inside = ~rest
        accuracies.append(((similarity[inside] > threshold) == same[inside]).double().mean())
    values = torch.stack(accuracies)
    return float(values.mean()), float(values.std(correction=0))


def best_threshold(similarity: Tensor, same: Tensor) -> float:
    """The threshold of highest accuracy; pairs strictly above it count as the same person."""
    order = similarity.argsort()
    ordered, truth = similarity[order], same[order].double()
    # With the cut after the i-th smallest: different pairs below are right, same pairs above.
    right = torch.cat([truth.new_zeros(1), (1 - truth).cumsum(0)]) + (
        truth.sum() - torch.cat([truth.new_zeros(1), truth.cumsum(0)])
    )
    # A cut between two equal values cannot be made.
    distinct = torch.cat([ordered.new_ones(1), ordered.diff(), ordered.new_ones(1)]) > 0
    cut = int(torch.where(distinct, right, -1.0).argmax())
    if cut == 0:
        return float(ordered[0]) - 1
    if cut == len(ordered):
        return float(ordered[-1])
    below, above = ordered[cut - 1], ordered[cut]
    middle = (below + above) / 2
    # Between neighbouring numbers there is none, and the middle may be rounded to the upper one.
    return float(middle if middle < above else below)


def _folds(fold: Tensor) -> Tensor:
    """The folds, each to be told by what the others say."""
    folds = fold.unique()
    if len(folds) < 2:
        raise ValueError(
            f"pairs must be in two folds or more, got {len(folds)}; what is chosen for a fold is "
            "chosen on the others"
        )
    return folds


def verification_accuracy(features: Tensor, files: list[str], pairs: Pairs) -> tuple[float, float]:
    """Ten-fold accuracy of the cosine between features.

    Args:
        features: one row per file, (N, D).
        files: N file names.
        pairs: which of them to compare.

    Returns:
        Mean and population standard deviation over the folds, in [0, 1].

    Raises:
        KeyError: if a pair names a file that has no feature.
        ValueError: if there is one fold only.
    """
    row = {file: index for index, file in enumerate(files)}
    first = features[[row[file] for file in pairs.first]]
    second = features[[row[file] for file in pairs.second]]
    return ten_fold_accuracy(F.cosine_similarity(first, second), pairs.same, pairs.fold)


def learned_accuracy(
    features: Tensor, files: list[str], pairs: Pairs, penalty: float = 0.1
) -> tuple[float, float]:
    """Ten-fold accuracy of a classifier that learns which differences between features matter.

    Logistic regression on |a - b|, standardised, fitted anew to the pairs of the other folds.

    Args:
        features: one row per file, (N, D).
        files: N file names.
        pairs: which of them to compare.
        penalty: on the squared weights; see ``fit_logistic``.

    Returns:
        Mean and population standard deviation over the folds, in [0, 1].

    Raises:
        KeyError: if a pair names a file that has no feature.
        ValueError: if there is one fold only.
    """
    row = {file: index for index, file in enumerate(files)}
    first, second = ([row[file] for file in side] for side in (pairs.first, pairs.second))
    differences = (features[first] - features[second]).abs()
    same = pairs.same.long()
    accuracies = []
    for held_out in _folds(pairs.fold):
        rest = pairs.fold != held_out
        mean, spread = differences[rest].mean(0), differences[rest].std(0).clamp(min=1e-6)
        inputs = (differences - mean) / spread
        weight, bias = fit_logistic(inputs[rest], same[rest], 2, penalty)
        told = (inputs[~rest] @ weight + bias).argmax(1)
        accuracies.append((told == same[~rest]).double().mean())
    values = torch.stack(accuracies)
    return float(values.mean()), float(values.std(correction=0))
