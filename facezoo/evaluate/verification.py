"""Face verification: classify pairs of images as the same identity or not."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from facezoo.evaluate.probes import linear_probe


@dataclass(frozen=True)
class Pairs:
    """Pairs of images by file name."""

    first: list[str]
    """P file names."""
    second: list[str]
    """P file names."""
    same: Tensor
    """True for pairs of one identity, bool, (P,)."""
    fold: Tensor
    """Fold of each pair; no identity is in two folds, (P,)."""

    def rows(self, features: Tensor, files: list[str]) -> tuple[Tensor, Tensor]:
        """Look up the features of both sides, (P, D) each.

        Raises:
            KeyError: if a pair names a file that has no feature.
        """
        row = {file: index for index, file in enumerate(files)}
        first, second = ([row[file] for file in side] for side in (self.first, self.second))
        return features[first], features[second]


def read_pairs(path: str | Path) -> Pairs:
    """Read pairs from a CSV file with the columns file_a, file_b, same (0 or 1), fold.

    Raises:
        ValueError: if ``same`` is neither 0 nor 1.
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
    """Compute the accuracy over folds; the threshold of each is chosen on the others.

    Source: the protocol of Labeled Faces in the Wild (Huang et al. 2007), Sec. "restricted".

    Args:
        similarity: larger means more similar, (P,).
        same: ground truth, bool, (P,).
        fold: fold of each pair, (P,).

    Returns:
        Mean and population standard deviation over the folds, in [0, 1].

    Raises:
        ValueError: if there is only one fold, or a similarity is NaN.
    """
    same = _truth(similarity, same)

    def predict(rest: Tensor, inside: Tensor) -> Tensor:
        return similarity[inside] > best_threshold(similarity[rest], same[rest])

    return _over_folds(predict, same, fold)


def verification_accuracy(features: Tensor, files: list[str], pairs: Pairs) -> tuple[float, float]:
    """Compute the accuracy over folds of the cosine similarity of features.

    Args:
        features: one row per file, (N, D).
        files: N file names.
        pairs: pairs to compare.

    Returns:
        Mean and population standard deviation over the folds, in [0, 1].

    Raises:
        KeyError: if a pair names a file that has no feature.
        ValueError: if there is only one fold.
    """
    similarity = F.cosine_similarity(*pairs.rows(features, files))
    return ten_fold_accuracy(similarity, pairs.same, pairs.fold)


def learned_accuracy(
    features: Tensor, files: list[str], pairs: Pairs, penalty: float = 0.1
) -> tuple[float, float]:
    """Compute the accuracy over folds of a linear probe on |a - b|, fitted to the other folds.

    Args:
        features: one row per file, (N, D).
        files: N file names.
        pairs: pairs to compare.
        penalty: L2 penalty of the probe.

    Returns:
        Mean and population standard deviation over the folds, in [0, 1].

    Raises:
        KeyError: if a pair names a file that has no feature.
        ValueError: if there is only one fold.
    """
    first, second = pairs.rows(features, files)
    differences, same = (first - second).abs(), pairs.same.long()

    def predict(rest: Tensor, inside: Tensor) -> Tensor:
        probe = linear_probe(
            differences, same, rest.nonzero()[:, 0], inside.nonzero()[:, 0], penalties=[penalty]
        )
        return probe.predicted.bool()

    return _over_folds(predict, pairs.same, pairs.fold)


def threshold_at(similarity: Tensor, same: Tensor, false_match_rate: float) -> tuple[float, float]:
    """Return the lowest threshold that keeps the false-match rate, and its false-non-match rate.

    Pairs strictly above the threshold count as the same identity.

    Args:
        similarity: larger means more alike, (P,).
        same: ground truth, bool, (P,).
        false_match_rate: highest share of the different pairs above the threshold, in [0, 1).

    Returns:
        Threshold, and the share of the pairs of one identity that are not above it.

    Raises:
        ValueError: if all pairs are of the same kind, or a similarity is NaN.
    """
    same = _truth(similarity, same)
    if not bool(same.any()) or bool(same.all()):
        raise ValueError("a threshold needs pairs of one identity and pairs of two")
    different = similarity[~same].sort(descending=True).values
    threshold = float(different[int(false_match_rate * len(different))])
    return threshold, float((similarity[same] <= threshold).double().mean())


def best_threshold(similarity: Tensor, same: Tensor) -> float:
    """Return the threshold of highest accuracy; pairs strictly above it have one identity.

    Args:
        similarity: larger means more alike, (P,).
        same: ground truth, bool, (P,).

    Raises:
        ValueError: if a similarity is NaN.
    """
    same = _truth(similarity, same)
    order = similarity.argsort()
    ordered, truth = similarity[order], same[order].double()
    # A cut after the i-th smallest: different pairs below and same pairs above are correct.
    right = torch.cat([truth.new_zeros(1), (1 - truth).cumsum(0)]) + (
        truth.sum() - torch.cat([truth.new_zeros(1), truth.cumsum(0)])
    )
    # There is no cut between two equal values.
    distinct = torch.cat([ordered.new_ones(1), ordered.diff(), ordered.new_ones(1)]) > 0
    cut = int(torch.where(distinct, right, -1.0).argmax())
    if cut == 0:
        return float(ordered[0]) - 1
    if cut == len(ordered):
        return float(ordered[-1])
    below, above = ordered[cut - 1], ordered[cut]
    middle = (below + above) / 2
    # The middle of two adjacent numbers may be rounded to the upper one.
    return float(middle if middle < above else below)


def _truth(similarity: Tensor, same: Tensor) -> Tensor:
    """Return the ground truth as bool, also for 0 and 1; NaN has no place in an order."""
    if len(similarity) != len(same):
        raise ValueError(f"there are {len(similarity)} similarities and {len(same)} labels")
    if count := int(similarity.isnan().sum()):
        raise ValueError(
            f"{count} of {len(similarity)} similarities are NaN; leave these pairs out, or count "
            "them as different: similarity.nan_to_num(-1)"
        )
    return same.bool()


def _over_folds(
    predict: Callable[[Tensor, Tensor], Tensor], same: Tensor, fold: Tensor
) -> tuple[float, float]:
    """Return mean and standard deviation of the accuracy over folds.

    ``predict`` gets masks of the other folds and of the fold, (P,), and returns bool for the fold.
    """
    folds = fold.unique()
    if len(folds) < 2:
        raise ValueError(
            f"pairs must be in two folds or more, got {len(folds)}; the threshold of a fold is "
            "chosen on the others"
        )
    right = [predict(fold != number, fold == number) == same[fold == number] for number in folds]
    values = torch.stack([part.double().mean() for part in right])
    return float(values.mean()), float(values.std(correction=0))
