"""Does one checkpoint do better than another on the same images, or is it luck?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints on the same images; the difference is the second less the first."""

    images: int
    """How many images both were asked about."""
    only_first: int
    """How many of them only the first has right."""
    only_second: int
    """How many of them only the second has right."""
    difference: float
    """Accuracy of the second less that of the first, in [-1, 1]."""
    low: float
    """Lower end of the interval around the difference."""
    high: float
    """Upper end of it."""
    confidence: float
    """Share of the resamples whose difference is in the interval."""
    p_value: float
    """Of McNemar's exact test, two-sided, that both are right equally often."""

    def __str__(self) -> str:
        """Such as ``+0.70 (95 % interval -0.20 to +1.61, p = 0.134)``, in percentage points."""
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
    """Whether two checkpoints differ on the same images.

    It tells whether the difference would hold on other images of this kind. It does not tell
    whether it would hold for another training run with another seed.

    Args:
        first: whether the first has each image right, bool, (N,).
        second: the same of the second, in the same order, bool, (N,).
        confidence: of the interval, in (0, 1).
        resamples: how many times the images are drawn again for the interval.
        seed: of these draws.

    Returns:
        The difference, its interval and the probability of luck.

    Raises:
        ValueError: if the two are not of the same images, or there are none.
    """
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(
            f"compare wants two rows of N right or wrong answers about the same images, got "
            f"{tuple(first.shape)} and {tuple(second.shape)}"
        )
    count = len(first)
    only_first = int((first & ~second).sum())
    only_second = int((second & ~first).sum())
    low, high = bootstrap_interval(only_first, only_second, count, confidence, resamples, seed)
    return Comparison(
        images=count,
        only_first=only_first,
        only_second=only_second,
        difference=(only_second - only_first) / count,
        low=low,
        high=high,
        confidence=confidence,
        p_value=mcnemar(only_first, only_second),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test.

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions
    or percentages" (1947), with the binomial distribution in place of its approximation. Of the
    images that only one of two has right, each has half the images if both are as good.

    Args:
        only_first: images that only the first has right.
        only_second: images that only the second has right.

    Returns:
        In (0, 1].
    """
    differing = only_first + only_second
    tail = ways = 1  # of no heads; then of k heads, each from the one before
    for heads in range(1, min(only_first, only_second) + 1):
        ways = ways * (differing - heads + 1) // heads
        tail += ways
    return min(1.0, 2 * tail / 2**differing)


def bootstrap_interval(
    only_first: int, only_second: int, images: int, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Percentile interval of the difference in accuracy under a paired bootstrap.

    Source: Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), Sec. 13.3. Drawing N
    images with replacement draws, of the three kinds that matter, multinomial counts; so the
    counts are drawn and not the images.

    Args:
        only_first: images that only the first has right.
        only_second: images that only the second has right.
        images: N, how many images there are.
        confidence: in (0, 1).
        resamples: how many draws.
        seed: of the draws.

    Returns:
        Lower and upper end, in [-1, 1].
    """
    kinds = np.array([only_first, only_second, images - only_first - only_second]) / images
    drawn = np.random.default_rng(seed).multinomial(images, kinds, size=resamples)
    differences = (drawn[:, 1] - drawn[:, 0]) / images
    low, high = np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
