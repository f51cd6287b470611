"""What a data set of expressions is once it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from facezoo.results import EXPRESSIONS

BASIC = EXPRESSIONS[:7]
"""The seven classes of RAF-DB, SFEW and of AffectNet in IPD-FER: all but contempt."""


@dataclass(frozen=True)
class ExpressionData:
    """The images of a data set, with what is known of each; the N rows of all fields agree."""

    name: str
    files: list[Path]
    labels: Tensor
    """Index in ``EXPRESSIONS``, -1 where there is none, int64, (N,)."""
    distributions: Tensor
    """Probabilities over ``EXPRESSIONS``: the votes where the set has them, else all on the label;
    zero where there is neither, (N, 8)."""
    splits: list[str]
    """``"train"``, ``"val"`` or ``"test"``; empty where the set has no splits."""
    persons: list[str]
    """Who is shown, empty where unknown."""
    cropped: bool
    """Whether each image shows a single face that fills it."""
    landmarks: Tensor | None = None
    """Five points in the order of ``LANDMARK_NAMES``, pixels of the image, NaN where unknown,
    (N, 5, 2); None if the set gives none."""
    boxes: Tensor | None = None
    """x0, y0, x1, y1 in pixels, NaN where unknown, (N, 4); None if the set gives none."""
    fold: Tensor | None = None
    """The person-independent fold of each image, int64, (N,); None if the set has no folds."""

    def __len__(self) -> int:
        return len(self.files)

    def rows(self, split: str | None = None, classes: Sequence[str] = EXPRESSIONS) -> Tensor:
        """Which rows carry a label of some classes.

        Args:
            split: one of ``splits``, or None for all.
            classes: words of ``EXPRESSIONS``, such as ``BASIC``.

        Returns:
            Row numbers, int64, (M,).

        Raises:
            ValueError: if there is no such split or class.
        """
        if split is not None and split not in self.splits:
            known = sorted(set(self.splits) - {""}) or ["none"]
            raise ValueError(f"{self.name} has no split {split!r}; it has {', '.join(known)}")
        if unknown := [word for word in classes if word not in EXPRESSIONS]:
            raise ValueError(f"{unknown[0]!r} is not among {', '.join(EXPRESSIONS)}")
        wanted = torch.isin(self.labels, torch.tensor([EXPRESSIONS.index(c) for c in classes]))
        if split is not None:
            wanted &= torch.tensor([s == split for s in self.splits])
        return wanted.nonzero()[:, 0]


def with_labels(
    name: str,
    files: list[Path],
    words: Sequence[str | None],
    splits: list[str],
    *,
    persons: list[str] | None = None,
    cropped: bool = False,
    landmarks: Tensor | None = None,
    boxes: Tensor | None = None,
    fold: Tensor | None = None,
) -> ExpressionData:
    """A data set with one word of ``EXPRESSIONS`` or None for each image."""
    labels = torch.tensor([-1 if word is None else EXPRESSIONS.index(word) for word in words])
    certain = F.one_hot(labels.clamp(min=0), len(EXPRESSIONS)).float() * (labels >= 0)[:, None]
    persons = persons or [""] * len(files)
    return ExpressionData(
        name, files, labels, certain, splits, persons, cropped, landmarks, boxes, fold
    )


def in_landmark_order(points: Tensor) -> Tensor:
    """Put eyes and mouth corners into the order of ``LANDMARK_NAMES``.

    The subject's right eye is the one on the image's left when the face is upright; a set may list
    the eyes and the mouth corners either way round.

    Args:
        points: two eyes, nose tip, two mouth corners, (N, 5, 2).

    Returns:
        The same points, (N, 5, 2).
    """
    down = points[:, 3:].mean(1) - points[:, :2].mean(1)
    ordered = points.clone()
    for first, second in ((0, 1), (3, 4)):
        across = points[:, second] - points[:, first]
        swapped = across[:, 0] * down[:, 1] < across[:, 1] * down[:, 0]
        ordered[swapped, first] = points[swapped, second]
        ordered[swapped, second] = points[swapped, first]
    return ordered
