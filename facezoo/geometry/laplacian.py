"""The uniform graph Laplacian of a triangle mesh. Shapes: B batch, N vertices, T triangles."""

from __future__ import annotations

import torch
from torch import Tensor


def edges_of(triangles: Tensor) -> Tensor:
    """Every edge of a mesh once, smaller vertex first, in order, int64, (E, 2)."""
    corners = triangles.long()
    pairs = torch.cat([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [2, 0]]])
    return pairs.sort(1).values.unique(dim=0)


def laplacian(vertices: Tensor, edges: Tensor) -> Tensor:
    """Every vertex minus the mean of its neighbours, (Lx)_v, keeping gradients.

    Args:
        vertices: (B, N, 3).
        edges: as ``edges_of`` gives them, (E, 2).

    Returns:
        (B, N, 3); 0 for a vertex without neighbours.
    """
    source = torch.cat([edges[:, 0], edges[:, 1]])
    target = torch.cat([edges[:, 1], edges[:, 0]])
    degree = torch.bincount(target, minlength=vertices.shape[1]).to(vertices.dtype)
    total = torch.zeros_like(vertices).index_add(1, target, vertices[:, source])
    lonely = (degree == 0)[None, :, None]
    mean = total / degree.clamp(min=1)[None, :, None]
    return torch.where(lonely, torch.zeros_like(vertices), vertices - mean)
