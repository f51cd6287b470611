"""What a scan may lack beside a registered mesh: points, a part, precision.

Points are (N, 3), and every random choice takes its generator.
"""

from __future__ import annotations

import torch
from torch import Tensor


def some_points(points: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """``count`` of the points in random order, or all of them if there are fewer."""
    return points[torch.randperm(len(points), generator=draw)[:count]]


def jittered(points: Tensor, deviation: float, draw: torch.Generator) -> Tensor:
    """Every coordinate with Gaussian noise of this standard deviation, in the points' unit."""
    return points + deviation * torch.randn(points.shape, generator=draw)


def without_part(points: Tensor, share: float, draw: torch.Generator) -> Tensor:
    """Without the ``share`` of the points that lies farthest in a random direction."""
    direction = torch.randn(3, generator=draw)
    order = (points @ direction).argsort()
    return points[order[: round(len(points) * (1 - share))]]
