"""Expression accuracy on faces that look ever further aside, as in Table 8 of IPD-FER's paper."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from facezoo.evaluate.classification import is_right

LIMITS_DEG = (10, 20, 30, 40)
"""The limits of the paper's Table 8, degrees."""


@dataclass(frozen=True)
class PoseBin:
    """How well the faces beyond a yaw are told."""

    beyond_deg: int | None
    """|yaw| is larger than this, degrees; None for all faces, of unknown yaw too."""
    images: int
    """How many faces these are."""
    accuracy: float
    """Share of them whose class is right, in [0, 1]; NaN if there are none."""


def accuracy_by_yaw(probabilities: Tensor, truth: Tensor, yaw: Tensor) -> list[PoseBin]:
    """Accuracy on all faces, and on those beyond 10, 20, 30 and 40 degrees of yaw to either side.

    Source: Jiang & Deng, "Disentangling Identity and Pose for Facial Expression Recognition",
    Sec. 4.4, Table 8. The sets are nested, as there.

    Args:
        probabilities: (N, K); a row of NaN, where nothing was predicted, counts as wrong.
        truth: class of each row, (N,).
        yaw: degrees, NaN where it is unknown, (N,).

    Returns:
        All faces first, then by rising limit.
    """
    right = is_right(probabilities, truth).double()
    inside = [torch.ones_like(right, dtype=torch.bool), *(yaw.abs() > d for d in LIMITS_DEG)]
    return [
        PoseBin(limit, int(rows.sum()), float(right[rows].mean()))
        for limit, rows in zip((None, *LIMITS_DEG), inside, strict=True)
    ]
