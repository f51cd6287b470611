"""Triangle meshes with units, and the rigid motion that lays one upon another.

Letters: N vertices, T triangles, K points.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from facezoo.results import Result

UNITS_MM = {"mm": 1.0, "cm": 10.0, "m": 1000.0}
"""Millimetres in each unit of length."""


@dataclass(frozen=True, repr=False)
class Mesh(Result):
    """A triangle mesh, or a cloud of points."""

    vertices: Tensor
    """In ``units``, (N, 3)."""
    units: str
    """A key of ``UNITS_MM``."""
    triangles: Tensor | None = None
    """Corners of each triangle, int64, (T, 3); None for a cloud of points."""

    def __post_init__(self) -> None:
        millimetres(self.units)
        if self.vertices.ndim != 2 or self.vertices.shape[1] != 3 or not len(self.vertices):
            raise ValueError(f"vertices must be (N, 3), got {tuple(self.vertices.shape)}")
        if not bool(torch.isfinite(self.vertices).all()):
            raise ValueError("vertices must be finite numbers; this mesh has NaN or infinity")
        if self.triangles is not None:
            check_triangles(self.triangles, len(self.vertices))

    def to_units(self, units: str) -> Mesh:
        """The same mesh in other units."""
        factor = millimetres(self.units) / millimetres(units)
        return Mesh(self.vertices * factor, units, self.triangles)


def millimetres(units: str | None) -> float:
    """Millimetres in a unit of length.

    Raises:
        ValueError: if it is unknown or not stated.
    """
    if units not in UNITS_MM:
        raise ValueError(
            f"units must be one of {', '.join(UNITS_MM)}, got {units!r}; coordinates alone do not "
            "tell, so state what the numbers mean"
        )
    return UNITS_MM[units]


def check_triangles(triangles: Tensor, count: int) -> None:
    """Refuse triangles that are not (T, 3) whole numbers of ``count`` vertices."""
    if triangles.ndim != 2 or triangles.shape[1] != 3:
        raise ValueError(f"triangles must be (T, 3), got {tuple(triangles.shape)}")
    if triangles.is_floating_point():
        raise ValueError(f"triangles must be whole numbers, got {triangles.dtype}")
    if len(triangles) and (int(triangles.min()) < 0 or int(triangles.max()) >= count):
        raise ValueError(
            f"triangles name vertices {int(triangles.min())} to {int(triangles.max())}, and there "
            f"are {count}, counted from 0"
        )


def rigid_motion(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation R and translation t that lay points upon others: least squares of R x + t.

    Source: Kabsch, "A solution for the best rotation to relate two sets of vectors", 1976.

    Args:
        source: (..., K, 3).
        target: the corresponding points, (..., K, 3).

    Returns:
        R, a rotation without reflection, (..., 3, 3), and t, (..., 3).

    Raises:
        ValueError: if there are fewer than three points or the shapes differ.
    """
    if source.shape != target.shape or source.shape[-1] != 3 or source.shape[-2] < 3:
        raise ValueError(
            "a rigid motion needs three corresponding points or more, (K, 3) each; got "
            f"{tuple(source.shape)} and {tuple(target.shape)}"
        )
    middle, aim = source.mean(-2, keepdim=True), target.mean(-2, keepdim=True)
    covariance = (source - middle).transpose(-1, -2) @ (target - aim)
    left, _, right = torch.linalg.svd(covariance.double())
    sign = torch.sign(torch.linalg.det(left @ right))
    flip = torch.ones(*covariance.shape[:-1], dtype=torch.float64, device=source.device)
    flip[..., 2] = sign
    rotation = (right.transpose(-1, -2) @ (flip[..., None] * left.transpose(-1, -2))).to(
        source.dtype
    )
    return rotation, (aim - middle @ rotation.transpose(-1, -2))[..., 0, :]


def moved(points: Tensor, rotation: Tensor, translation: Tensor) -> Tensor:
    """R x + t of every point, (..., K, 3)."""
    return points @ rotation.transpose(-1, -2) + translation[..., None, :]
