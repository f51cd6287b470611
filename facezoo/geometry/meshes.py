"""Triangle meshes with units: rigid alignment, graph Laplacian, and changes that imitate scans.

Letters: B batch, N vertices, T triangles, E edges, K corresponding points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facezoo.results import Result

UNITS_MM = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "dm": 100.0, "inch": 25.4}
"""Millimeters in each unit of length."""


@dataclass(frozen=True, repr=False)
class Mesh(Result):
    """A triangle mesh, or a point cloud.

    Arrays become tensors, so a mesh of trimesh is ``Mesh(mesh.vertices, "mm", mesh.faces)``.
    """

    vertices: Tensor
    """In ``units``, (N, 3); whole numbers become float64."""
    units: str
    """A key of ``UNITS_MM``."""
    triangles: Tensor | None = None
    """Vertex indices of each triangle, int64, (T, 3); None for a point cloud."""

    def __post_init__(self) -> None:
        millimeters(self.units)
        object.__setattr__(self, "vertices", _floats(self.vertices))
        if self.vertices.ndim != 2 or self.vertices.shape[1] != 3 or not len(self.vertices):
            raise ValueError(f"vertices must be (N, 3), got {tuple(self.vertices.shape)}")
        if not bool(torch.isfinite(self.vertices).all()):
            raise ValueError("vertices must be finite numbers; this mesh has NaN or infinity")
        if self.triangles is not None:
            object.__setattr__(self, "triangles", _indices(self.triangles))
            _check_triangles(self.triangles, len(self.vertices))

    def to_units(self, units: str) -> Mesh:
        """Convert the vertices to other units."""
        if units == self.units:
            return self
        factor = millimeters(self.units) / millimeters(units)
        return Mesh(self.vertices * factor, units, self.triangles)


def _floats(values: Tensor | NDArray[Any]) -> Tensor:
    """Convert coordinates to floats; results in whole numbers would be truncated."""
    if isinstance(values, np.ndarray):  # torch rejects some byte orders
        return torch.from_numpy(np.array(values, np.float64, order="C"))
    return values if values.is_floating_point() else values.double()


def _indices(values: Tensor | NDArray[Any]) -> Tensor:
    """Convert vertex indices to int64; torch computes little with its unsigned types.

    Raises:
        ValueError: if they are not whole numbers.
    """
    if isinstance(values, np.ndarray):
        if values.dtype.kind in "iu":
            return torch.from_numpy(np.array(values, np.int64, order="C"))
    elif not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool):
        return values.long()
    raise ValueError(f"triangles must be whole numbers, got {values.dtype}")


def millimeters(units: str | None) -> float:
    """Look up the millimeters in a unit of length.

    Raises:
        ValueError: if the unit is missing or unknown.
    """
    if units not in UNITS_MM:
        raise ValueError(
            f"units must be one of {', '.join(UNITS_MM)}, got {units!r}; arrays and most files do "
            "not record their units, so pass units="
        )
    return UNITS_MM[units]


def _check_triangles(triangles: Tensor, count: int) -> None:
    if triangles.ndim != 2 or triangles.shape[1] != 3:
        raise ValueError(f"triangles must be (T, 3), got {tuple(triangles.shape)}")
    if len(triangles) and (int(triangles.min()) < 0 or int(triangles.max()) >= count):
        raise ValueError(
            f"triangles use vertices {int(triangles.min())} to {int(triangles.max())}, but there "
            f"are {count}, numbered from 0"
        )


def rigid_motion(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Fit the rotation R and translation t that minimize |R source + t - target|².

    Source: Kabsch, "A solution for the best rotation to relate two sets of vectors", 1976.

    Args:
        source: (..., K, 3).
        target: the corresponding points, (..., K, 3).

    Returns:
        R without reflection, (..., 3, 3), and t, (..., 3).

    Raises:
        ValueError: if there are fewer than three points or the shapes differ.
    """
    if source.shape != target.shape or source.shape[-1] != 3 or source.shape[-2] < 3:
        raise ValueError(
            "a rigid motion needs three or more corresponding points, (K, 3) each; got "
            f"{tuple(source.shape)} and {tuple(target.shape)}"
        )
    center, aim = source.mean(-2, keepdim=True), target.mean(-2, keepdim=True)
    covariance = (source - center).transpose(-1, -2) @ (target - aim)
    left, _, right = torch.linalg.svd(covariance.double())
    flip = torch.ones(*covariance.shape[:-1], dtype=torch.float64, device=source.device)
    flip[..., 2] = torch.sign(torch.linalg.det(left @ right))
    rotation = (right.transpose(-1, -2) @ (flip[..., None] * left.transpose(-1, -2))).to(
        source.dtype
    )
    return rotation, (aim - center @ rotation.transpose(-1, -2))[..., 0, :]


def apply_motion(points: Tensor, rotation: Tensor, translation: Tensor) -> Tensor:
    """Apply R x + t to points (..., K, 3)."""
    return points @ rotation.transpose(-1, -2) + translation[..., None, :]


def nearest_vertices(points: Tensor, vertices: Tensor, chunk: int = 512) -> Tensor:
    """Find the nearest vertex (N, 3) of each point (K, 3), int64, (K,).

    The distances are float64: float32 picks wrong vertices a meter away from the origin.
    """
    vertices = vertices.double()
    parts = points.double().split(chunk)
    return torch.cat([torch.cdist(part, vertices).argmin(1) for part in parts])


def edges_of(triangles: Tensor) -> Tensor:
    """List every edge of a mesh once, smaller vertex first, in order, int64, (E, 2)."""
    corners = triangles.long()
    pairs = torch.cat([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [2, 0]]])
    return pairs.sort(1).values.unique(dim=0)


def laplacian(vertices: Tensor, edges: Tensor) -> Tensor:
    """Compute the uniform graph Laplacian: each vertex minus the mean of its neighbors.

    Args:
        vertices: (B, N, 3).
        edges: from ``edges_of``, (E, 2).

    Returns:
        (B, N, 3) with gradients; 0 for a vertex without neighbors.
    """
    source = torch.cat([edges[:, 0], edges[:, 1]])
    target = torch.cat([edges[:, 1], edges[:, 0]])
    degree = torch.bincount(target, minlength=vertices.shape[1]).to(vertices.dtype)
    total = torch.zeros_like(vertices).index_add(1, target, vertices[:, source])
    mean = total / degree.clamp(min=1)[None, :, None]
    return (vertices - mean) * (degree > 0)[None, :, None]


def some_points(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Pick ``count`` points (N, 3) in random order, or all of them if there are fewer."""
    order = torch.randperm(len(points), generator=generator, device=generator.device)
    return points[order[:count]]


def add_noise(points: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise with this standard deviation to every coordinate."""
    noise = torch.randn(
        points.shape, generator=generator, dtype=torch.float32, device=generator.device
    )
    return points + deviation * noise


def cut_off(points: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Remove the ``share`` of the points that lies farthest in a random direction."""
    direction = torch.randn(3, generator=generator, dtype=torch.float32, device=generator.device)
    order = (points @ direction).argsort()
    return points[order[: round(len(points) * (1 - share))]]
