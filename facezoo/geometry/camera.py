"""Pinhole camera for depth maps, and views of six parameters.

The conventions follow Unsup3D (Wu et al., "Unsupervised Learning of Probably Symmetric Deformable
3D Objects", CVPR 2020), as the published weights expect:

* Axes: the camera is at the origin and looks along +z; x to the right, y **down**, z away from the
  camera. Depth has no unit: the face is about 1 away.
* Pixels: u is the column and v the row, with pixel centers at whole numbers from 0 to S - 1. In
  normalized coordinates the centers of the outermost pixels are -1 and 1 (``align_corners=True``).
* A depth map stores z, not the distance along the ray.
* View: rx, ry, rz (radians), tx, ty, tz (units of depth). It rotates the face about ``PIVOT`` by
  R = Rz Ry Rx on column vectors, with right-handed matrices in the axes above, then translates it.
  Positive ry moves points nearer than the pivot to the left, positive rx moves them down, and
  positive rz rotates the image clockwise.
* A depth map as a mesh: vertices in row-major order; first all upper-left triangles (i, j),
  (i + 1, j), (i, j + 1), then all lower-right ones (i, j + 1), (i + 1, j), (i + 1, j + 1), each in
  row-major order of (i, j).

The projection is perspective. Unsup3D calls the camera weak-perspective because its field of view
is small.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import radians, tan

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

PIVOT = (0.0, 0.0, 1.0)
"""The center of rotation of a view: the middle of the depth range."""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with square images.

    Source: LatentFace, Sec. 5.4, with the focal length of Unsup3D: the field of view spans from the
    center of the first pixel to the center of the last.
    """

    size: int
    """S, pixels."""
    fov_deg: float = 10.0
    """Horizontal and vertical field of view, degrees."""

    def __post_init__(self) -> None:
        if self.size < 2:
            raise ValueError(f"size must be 2 pixels or more, got {self.size}")
        if not 0 < self.fov_deg < 180:
            raise ValueError(f"fov_deg must be between 0 and 180 degrees, got {self.fov_deg}")

    @property
    def center(self) -> float:
        """The principal point, pixels, on both axes."""
        return (self.size - 1) / 2

    @property
    def focal(self) -> float:
        """Focal length, pixels."""
        return self.center / tan(radians(self.fov_deg) / 2)

    def unproject(self, depth: Tensor) -> Tensor:
        """Convert a depth map to points.

        Args:
            depth: z of each pixel, (B, S, S).

        Returns:
            x, y, z in camera coordinates, (B, S, S, 3).

        Raises:
            ValueError: if ``depth`` has another shape.
        """
        if depth.ndim != 3 or tuple(depth.shape[1:]) != (self.size, self.size):
            raise ValueError(
                f"depth must be (B, {self.size}, {self.size}), got {tuple(depth.shape)}; use a "
                "Camera of the depth map's size"
            )
        ray = (
            torch.arange(self.size, device=depth.device, dtype=depth.dtype) - self.center
        ) / self.focal
        return torch.stack([depth * ray, depth * ray[:, None], depth], -1)

    def project(self, points: Tensor) -> Tensor:
        """Project points to pixels.

        Args:
            points: x, y, z in camera coordinates, (..., 3).

        Returns:
            u, v in pixels and z, (..., 3). For points behind the camera (z of 0 or less), u and v
            have no meaning.
        """
        z = points[..., 2:]
        return torch.cat([points[..., :2] / z * self.focal + self.center, z], -1)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Convert pixels u, v (..., 2) to coordinates in which the image spans [-1, 1]."""
        return pixels / self.center - 1


def rotation_matrix(angles: Tensor) -> Tensor:
    """Compute R = Rz Ry Rx.

    Args:
        angles: rx, ry, rz in radians, (B, 3).

    Returns:
        Matrices for column vectors, (B, 3, 3).
    """
    (cx, cy, cz), (sx, sy, sz) = angles.cos().unbind(-1), angles.sin().unbind(-1)
    rows = [
        [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
        [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
        [-sy, cy * sx, cy * cx],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def to_view(points: Tensor, view: Tensor) -> Tensor:
    """Move canonical points into a view: R (p - pivot) + pivot + t.

    Args:
        points: canonical, (B, N, 3).
        view: rx, ry, rz, tx, ty, tz, (B, 6).

    Returns:
        Points in the view, (B, N, 3).

    Raises:
        ValueError: if the shapes do not match.
    """
    _check_posed(points, view)
    pivot = points.new_tensor(PIVOT)
    rotated = (points - pivot) @ rearrange(rotation_matrix(view[:, :3]), "b i j -> b j i")
    return rotated + pivot + view[:, None, 3:]


def to_canonical(points: Tensor, view: Tensor) -> Tensor:
    """Invert ``to_view``, with the same shapes and errors."""
    _check_posed(points, view)
    pivot = points.new_tensor(PIVOT)
    return (points - view[:, None, 3:] - pivot) @ rotation_matrix(view[:, :3]) + pivot


def warp_grid(depth: Tensor, view: Tensor, camera: Camera) -> Tensor:
    """Locate each pixel of a canonical depth map in a view.

    Args:
        depth: canonical, (B, S, S).
        view: (B, 6).
        camera: of the same size.

    Returns:
        Normalized coordinates, (B, S, S, 2).
    """
    points = rearrange(camera.unproject(depth), "b h w c -> b (h w) c")
    return _grid(to_view(points, view), camera)


def inverse_warp_grid(depth: Tensor, view: Tensor, camera: Camera) -> Tensor:
    """Locate each pixel of a depth map in a view in the canonical image.

    ``resample`` with this grid renders the canonical image in the view.

    Args:
        depth: in the view, (B, S, S).
        view: (B, 6).
        camera: of the same size.

    Returns:
        Normalized coordinates, (B, S, S, 2).
    """
    points = rearrange(camera.unproject(depth), "b h w c -> b (h w) c")
    return _grid(to_canonical(points, view), camera)


def resample(images: Tensor, grid: Tensor) -> Tensor:
    """Sample images bilinearly at normalized coordinates, 0 outside.

    Corners are aligned, as ``grid_sample`` did by default when Unsup3D was written. Today's default
    would shrink images by half a pixel.

    Args:
        images: (B, C, H, W).
        grid: (B, H', W', 2).

    Returns:
        (B, C, H', W').
    """
    return F.grid_sample(images, grid, align_corners=True)


def grid_triangles(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """List the triangles of a depth map's mesh, in the order of the module docstring.

    Args:
        height: rows of vertices, 2 or more.
        width: columns of vertices, 2 or more.
        device: device of the result.

    Returns:
        Vertex indices, int64, (2 (height - 1) (width - 1), 3).

    Raises:
        ValueError: if there are fewer than two rows or columns.
    """
    if min(height, width) < 2:
        raise ValueError(f"a mesh needs 2 rows and 2 columns or more, got {height} and {width}")
    index = torch.arange(height * width, device=device).unflatten(0, (height, width))
    here, right, below, across = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    upper, lower = torch.stack([here, below, right], -1), torch.stack([right, below, across], -1)
    return rearrange([upper, lower], "t h w c -> (t h w) c")


def _grid(points: Tensor, camera: Camera) -> Tensor:
    pixels = camera.normalize(camera.project(points)[..., :2])
    return rearrange(pixels, "b (h w) c -> b h w c", h=camera.size)


def _check_posed(points: Tensor, view: Tensor) -> None:
    if points.ndim != 3 or points.shape[-1] != 3 or tuple(view.shape) != (len(points), 6):
        raise ValueError(
            f"points must be (B, N, 3) and view (B, 6) with the same B, got {tuple(points.shape)} "
            f"and {tuple(view.shape)}; repeat a shared one with expand()"
        )
