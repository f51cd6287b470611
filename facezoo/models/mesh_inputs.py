"""Read meshes, check them, and align them to the template of a model.

Letters: M meshes, N vertices, T triangles, K landmarks.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facezoo.geometry.mesh_files import read_mesh
from facezoo.geometry.meshes import Mesh, apply_motion, millimeters, rigid_motion

MeshSource = str | Path | Mesh | NDArray[Any] | Tensor
"""A file, a mesh with units, or vertices (N, 3) or (M, N, 3)."""
Meshes = MeshSource | Sequence[MeshSource]
Landmarks = Sequence[int] | Sequence[Sequence[float]] | NDArray[Any] | Tensor
"""Vertex numbers (K,), or coordinates (K, 3) in the units of the mesh."""

FARTHEST_MM = 150.0
"""Largest distance between the centers of a mesh and the template."""
LARGEST_RESIDUAL = 0.2
"""Largest mean distance from the template, as a share of the template's mean radius."""
WARN_ROTATION_DEG, WARN_SHIFT_MM = 8.0, 10.0
"""Pose relative to the template above which corresponding meshes get a warning. Faces drawn from
the code distribution of ``adv3d.ict-neutral`` stay below both."""
FIVE = ((36, 37, 38, 39, 40, 41), (42, 43, 44, 45, 46, 47), (30,), (48,), (54,))
"""Right eye, left eye, nose tip, right and left mouth corner, as means of the 68 landmarks."""
ALIGNMENTS = (None, "vertices", "landmarks")


@dataclass(frozen=True)
class Template:
    """The mean training face, in millimeters."""

    vertices: Tensor
    """(N, 3)."""
    triangles: Tensor
    """int64, (T, 3)."""
    landmarks: Tensor
    """Vertex numbers, int64, (K,)."""

    @cached_property
    def precise(self) -> Tensor:
        """The vertices in float64, (N, 3)."""
        return self.vertices.double()

    @cached_property
    def radius(self) -> float:
        """The mean distance of the vertices from their center, mm."""
        return _radius(self.precise)

    def landmark_points(self, count: int) -> Tensor:
        """Return all landmarks, or five of 68, (count, 3).

        Raises:
            ValueError: if ``count`` is neither.
        """
        points = self.vertices[self.landmarks]
        if count == len(points):
            return points
        if count == len(FIVE) and len(points) == 68:
            return torch.stack([points[list(part)].mean(0) for part in FIVE])
        five = " or 5" if len(points) == 68 else ""
        raise ValueError(f"landmarks must be {len(points)}{five} points, got {count}")


def as_list(meshes: Meshes) -> list[MeshSource]:
    """List single meshes; batches are split.

    Raises:
        TypeError: if ``meshes`` is neither a mesh nor a list of meshes.
    """
    if isinstance(meshes, (str, Path, Mesh)):
        return [meshes]
    if isinstance(meshes, (np.ndarray, Tensor)):
        return list(meshes) if meshes.ndim == 3 else [meshes]
    if not isinstance(meshes, Iterable):
        raise _not_a_mesh(meshes)
    return [one for source in meshes for one in as_list(source)]


def _not_a_mesh(source: object) -> TypeError:
    """Build the error for another object."""
    other = ""
    if hasattr(source, "vertices") and hasattr(source, "faces"):  # of trimesh and others
        other = "; pass Mesh(mesh.vertices, units, mesh.faces) of facezoo.geometry.meshes"
    return TypeError(
        "expected a mesh file, a Mesh, vertices (N, 3) or (M, N, 3) as an array or tensor, or "
        f"a list of these; got {type(source).__name__}{other}"
    )


def is_file(source: MeshSource) -> bool:
    """Return True for a path."""
    return isinstance(source, (str, Path))


def describe(source: MeshSource, index: int) -> str:
    """Name a mesh in an error: the file, or its position in the list."""
    return str(source) if isinstance(source, (str, Path)) else f"mesh {index}"


def as_mesh(source: MeshSource, units: str | None) -> Mesh:
    """Read or convert one mesh.

    Raises:
        FileNotFoundError: if the file is missing.
        TypeError: if it is neither a file nor a mesh.
        ValueError: if units are missing, or the mesh is damaged.
    """
    if isinstance(source, Mesh):
        return Mesh(source.vertices.detach(), source.units, source.triangles)
    millimeters(units)
    assert units is not None
    if isinstance(source, (str, Path)):
        return read_mesh(source, units)
    if not isinstance(source, (np.ndarray, Tensor)):
        raise _not_a_mesh(source)
    if source.dtype in (np.uint8, torch.uint8):
        raise ValueError("its vertices are uint8, as the pixels of an image; pass a mesh")
    return Mesh(source.detach() if isinstance(source, Tensor) else source, units)  # type: ignore[arg-type]


def landmark_positions(mesh: Mesh, landmarks: Landmarks) -> Tensor:
    """Return landmarks as points in the units of the mesh, float64, (K, 3).

    Raises:
        ValueError: if they are neither vertex numbers of the mesh nor coordinates.
    """
    # numpy reads a list in float64, and torch in its default dtype on its default device.
    values = landmarks if isinstance(landmarks, Tensor) else torch.from_numpy(np.array(landmarks))
    values = values.detach().to(mesh.vertices.device)
    numbers = values.dtype != torch.bool and not values.is_complex()
    if values.ndim == 2 and values.shape[1] == 3 and numbers:
        return values.double()
    last = len(mesh.vertices) - 1
    expected = f"landmarks must be vertex numbers from 0 to {last}, or coordinates (K, 3)"
    if values.ndim != 1 or values.is_floating_point() or not numbers:
        raise ValueError(f"{expected}; got {tuple(values.shape)} of {values.dtype}")
    values = values.long()
    if len(values) and (int(values.min()) < 0 or int(values.max()) > last):
        raise ValueError(f"{expected}; got {int(values.min())} to {int(values.max())}")
    return mesh.vertices[values].double()


def align_mesh(
    mesh: Mesh, template: Template, align: str | None, landmarks: Landmarks | None
) -> Tensor:
    """Move a mesh into the frame of the template and check its place.

    Returns:
        Vertices in millimeters, float32, (N, 3).

    Raises:
        ValueError: if the mesh cannot be aligned as requested, or does not lie on the template.
    """
    if align not in ALIGNMENTS:
        raise ValueError(f"align must be 'auto', None, 'vertices' or 'landmarks', got {align!r}")
    if landmarks is not None and align != "landmarks":
        raise ValueError(f"landmarks need align='landmarks', got align={align!r}")
    points = mesh.to_units("mm").vertices.double()
    ratio = _radius(points) / template.radius
    if not 0.4 < ratio < 2.5:
        raise ValueError(
            f"it is {ratio:.3g} times as large as the template; check units, or use a mesh of the "
            "face only"
        )
    if (zeros := int((points == 0).all(1).sum())) > 2:
        raise ValueError(
            f"{zeros} vertices are (0, 0, 0), as missing points of scans are; remove them"
        )
    if align == "vertices":
        points = _align_by_vertices(points, template)
    elif align == "landmarks":
        if not len(template.landmarks):
            raise ValueError("the template has no landmarks; use align='vertices'")
        if landmarks is None:
            raise ValueError("align='landmarks' needs landmarks=, see MeshModel; got none")
        own = landmark_positions(mesh, landmarks) * millimeters(mesh.units)
        target = template.landmark_points(len(own)).double().to(own.device)
        points = apply_motion(points, *rigid_motion(own, target))
    points = points.to(template.vertices)
    _check_place(points, template)
    return points


def _align_by_vertices(points: Tensor, template: Template) -> Tensor:
    """Fit all vertices to the template's; check that they correspond."""
    target = template.precise.to(points.device)
    if len(points) != len(target):
        raise ValueError(
            f"align='vertices' needs the template's {len(target)} vertices in its order, got "
            f"{len(points)}; use align='landmarks', or align the mesh yourself"
        )

    limit = LARGEST_RESIDUAL * template.radius
    motion = rigid_motion(points, target)
    if (error := _residual(points, target, motion)) > limit:
        if _residual(_mirrored(points), target) < limit:
            cause = "the mesh is mirrored; negate one coordinate"
        elif _residual(points / (scale := _radius(points) / template.radius), target) < limit:
            cause = f"it is {scale:.2f} times as large as the template; check units, or scale it"
        else:
            cause = (
                "its vertices are in another order; use the order of the template, or "
                "align='landmarks'"
            )
        raise ValueError(
            f"after align='vertices' its vertices are {error:.0f} mm from the template's on "
            f"average (limit {limit:.0f} mm): {cause}"
        )
    return apply_motion(points, *motion)


def corresponds(points: Tensor, template: Template, name: str) -> bool:
    """Return True if the points in mm are the template's vertices, in order; check their pose.

    Raises:
        ValueError: if they are the mirrored vertices.
    """
    points, target = points.double(), template.precise.to(points.device)
    limit = LARGEST_RESIDUAL * template.radius
    if len(points) != len(target):
        return False
    motion = rigid_motion(points, target)
    # The root of the mean square without a fit is never below the mean distance after the fit.
    near = float((points - target).norm()) <= limit * len(points) ** 0.5
    if not near and _residual(points, target, motion) > limit:
        if _residual(_mirrored(points), target) < limit:
            raise ValueError("the mesh is mirrored; negate one coordinate")
        return False
    angle, shift = pose_difference(points, target, motion[0])
    if angle > WARN_ROTATION_DEG or shift > WARN_SHIFT_MM:
        warnings.warn(
            f"{name}: it is rotated by {angle:.0f} degrees and shifted by {shift:.0f} mm from the "
            "template, which changes its codes; pass align='vertices'",
            stacklevel=5,
        )
    return True


def is_moved(points: Tensor, template: Template) -> bool:
    """Return True if corresponding points have clearly another pose than the template."""
    angle, shift = pose_difference(points, template.precise)
    return angle > WARN_ROTATION_DEG or shift > WARN_SHIFT_MM


def pose_difference(
    points: Tensor, target: Tensor, rotation: Tensor | None = None
) -> tuple[float, float]:
    """Return the rotation in degrees and the shift in mm between corresponding points (N, 3).

    ``rotation`` is that of ``rigid_motion``, if it is known.
    """
    points, target = points.double(), target.double().to(points.device)
    if rotation is None:
        rotation, _ = rigid_motion(points, target)
    cosine = (rotation.trace() - 1) / 2
    shift = (points.mean(0) - target.mean(0)).norm()
    return math.degrees(math.acos(cosine.clamp(-1, 1))), float(shift)


def _residual(points: Tensor, target: Tensor, motion: tuple[Tensor, Tensor] | None = None) -> float:
    """Compute the mean distance of corresponding points after a rigid fit, or after ``motion``."""
    moved = apply_motion(points, *(motion or rigid_motion(points, target)))
    return float((moved - target).norm(dim=1).mean())


def _radius(points: Tensor) -> float:
    """Compute the mean distance of points from their center."""
    return float((points - points.mean(0)).norm(dim=1).mean())


def _mirrored(points: Tensor) -> Tensor:
    return points * points.new_tensor([-1.0, 1, 1])


def warn_of_gaps(points: Tensor, template: Template, name: str) -> None:
    """Warn of a point cloud in mm, (N, 3), that lacks a large part of the face."""
    some = template.precise[:: max(1, len(template.vertices) // 200)].to(points.device)
    cloud = points[:: max(1, len(points) // 5000)].double()
    distance = float(torch.cdist(some, cloud).amin(1).mean())
    if distance > LARGEST_RESIDUAL * template.radius:
        warnings.warn(
            f"{name}: the template is {distance:.0f} mm from its points on average, so they lack a "
            "part of the face, and the codes do not describe it; pass a whole face, or a mesh with "
            "triangles, which is registered",
            stacklevel=6,
        )


def _check_place(points: Tensor, template: Template) -> None:
    distance = float((points.mean(0) - template.vertices.mean(0)).norm())
    advice = "align it with align='vertices' or align='landmarks'"
    if distance > FARTHEST_MM:
        raise ValueError(f"its center is {distance:.0f} mm from the template's; {advice}")
    limit = LARGEST_RESIDUAL * template.radius
    step = max(1, len(points) // 200)
    some = points[::step].double()
    if len(points) == len(template.vertices):
        # Nearest vertices are no farther than the corresponding ones.
        apart = (some - template.precise[::step]).norm(dim=1).mean()
        if float(apart) <= limit:
            return
    nearest = torch.cdist(some, template.precise).amin(1)
    if (error := float(nearest.mean())) > limit:
        raise ValueError(f"it is {error:.0f} mm from the template on average; {advice}")
