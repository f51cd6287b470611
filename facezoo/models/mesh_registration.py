"""Automatic registration: find the face of any mesh, and fit the template to it.

The mesh is rendered from several directions and the face detector finds the face (see
``face_finding``). Five landmarks give a similarity to the template, and so the units. Then the
template is fitted to the surface (see ``facezoo.geometry.registration``).

Letters: N vertices of the template, V vertices of the mesh, T triangles, K landmarks.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from facezoo.errors import explained_import
from facezoo.geometry.meshes import UNITS_MM, Mesh
from facezoo.geometry.registration import (
    Array,
    Indices,
    ShapeModel,
    Similarity,
    Surface,
    boundary_loops,
    fit_similarity,
    register_template,
    rigid_residual,
)
from facezoo.models.face_finding import find_poses

MAX_TRIANGLES = 60_000
"""Larger meshes are registered with merged vertices."""
NEIGHBORHOOD_MM = 50.0
"""Part of the mesh to register: within this distance of the bounding box of the template."""
UNIT_TOLERANCE = 1.35
"""Largest factor between the face and the template for a unit to be accepted."""
FACE_MM = 25.0
"""Distance from the 68 landmarks within which a vertex is of the face."""
JAW, UPPER_FACE = (8, 56, 57, 58, 65, 66, 67), (27, 30, 33, 36, 45, 51)
OPEN_MOUTH_MM = 24.0
"""Landmarks of chin and lower lip, which an open mouth moves down, and landmarks that stay."""
MAX_SURFACE_MM, MIN_COVERAGE = 3.0, 0.4
"""Largest distance from the surface, and least share of the face on it, of an accepted mesh."""
MAX_SHAPE_MM = 2.0
"""Largest distance of the fitted shape from the surface; faces have 0.1 to 1.2 mm."""


@dataclass(frozen=True)
class Registration:
    """A mesh with the template registered to it."""

    vertices: Tensor
    """Corresponding vertices in the frame of the template, millimeters, (N, 3)."""
    triangles: Tensor
    """Of the template, int64, (T, 3)."""
    units: str
    """Unit of the mesh: stated, found (``"taken as m"``), or ``"unknown"``."""
    pose: Similarity
    """From the frame of the template, mm, to the mesh in its own units."""
    residuals_mm: dict[str, float]
    """Distance of the face after each step: landmarks, rigid, shape, surface."""
    coverage: float
    """Share of the template's face vertices that the mesh covers."""
    source: Mesh = field(repr=False)
    """The mesh."""

    @property
    def mesh(self) -> Mesh:
        """The registered template as a mesh, millimeters."""
        return Mesh(self.vertices, "mm", self.triangles)

    def transfer(self, vertices: Tensor, fade_mm: float = 30.0) -> Mesh:
        """Deform the source mesh as the template changes to ``vertices`` (N, 3).

        Each vertex of the source moves with the nearest point of the registered template. The
        motion fades with the distance from the template, so hair and shoulders stay.

        Returns:
            The source with its own vertices, triangles and units.
        """
        points = self.pose.inverse(self.source.vertices.double().cpu().numpy())
        template = self.vertices.double().cpu().numpy()
        closest = Surface(template, self.triangles.cpu().numpy()).closest(points)
        change = vertices.double().cpu().numpy() - template
        corners = self.triangles.cpu().numpy()[closest.triangles]
        motion = np.einsum("pc,pcx->px", closest.weights, change[corners])
        motion *= np.exp(-np.square(closest.distances / fade_mm))[:, None]
        deformed = torch.from_numpy(self.pose.apply(points + motion))
        return Mesh(deformed.to(self.source.vertices), self.source.units, self.source.triangles)


def register(
    mesh: Mesh,
    model: ShapeModel,
    reference: Array | None,
    *,
    units: str | None = None,
    landmarks: tuple[Array, Array] | None = None,
) -> Registration:
    """Register the template to a mesh.

    Args:
        mesh: with triangles; in the units ``units``.
        model: the template with its shape parameters.
        reference: ``face_finding.template_landmarks``; needed without ``landmarks``.
        units: unit of the mesh; None finds it.
        landmarks: corresponding points of the mesh and of the template, (K, 3) each, instead of
            the detection.

    Raises:
        ValueError: if no face is found, or the mesh does not fit the template.
    """
    if mesh.triangles is None or not len(mesh.triangles):
        raise ValueError("registration needs a surface; this mesh has no triangles")
    vertices, triangles = _simplified(
        mesh.vertices.detach().double().cpu().numpy(), mesh.triangles.cpu().long().numpy()
    )
    if landmarks is None:
        assert reference is not None
        poses = find_poses(vertices, triangles, reference)
    else:
        pose = fit_similarity(landmarks[1], landmarks[0])
        residuals = pose.inverse(landmarks[0]) - landmarks[1]
        poses = [(float(np.linalg.norm(residuals, axis=1).mean()), pose)]
    starts = [(error, _start(model, vertices, triangles, pose, units)) for error, pose in poses]
    if len(starts) > 1:
        starts.sort(key=lambda start: rigid_residual(model, start[1].surface, start[1].pose))
    error, start = starts[0]
    name, to_mm = start.units, start.to_mm
    fit = register_template(model, start.surface, start.pose, free_scale=start.free_scale)
    if start.free_scale:
        warnings.warn(
            f"the unit of the mesh is unknown: one unit is about {to_mm / fit.pose.scale:.3g} mm; "
            f"topology='input' keeps it, but reports {mesh.units!r}; scale the mesh to millimeters",
            stacklevel=3,
        )
    elif units is None:
        mesh = Mesh(mesh.vertices, name.removeprefix("taken as "), mesh.triangles)
    coverage = float((fit.matched & model.face).sum() / model.face.sum())
    distance = fit.residuals_mm["surface"]
    if distance > MAX_SURFACE_MM or coverage < MIN_COVERAGE:
        raise ValueError(
            f"the registered template is {distance:.1f} mm from the surface (limit "
            f"{MAX_SURFACE_MM:g} mm) and {100 * coverage:.0f} % of the face is on it (at least "
            f"{100 * MIN_COVERAGE:.0f} %): the mesh is not a face, is too incomplete, "
            "or its triangles face inwards"
        )
    distance = fit.residuals_mm["shape"]
    if distance > MAX_SHAPE_MM:
        raise ValueError(
            f"the most similar face is {distance:.1f} mm from the surface (limit "
            f"{MAX_SHAPE_MM:g} mm): the mesh is not a face, or hair or clothes cover it"
        )
    return Registration(
        torch.from_numpy(fit.vertices).float(),
        torch.from_numpy(model.triangles),
        name,
        Similarity(fit.pose.scale / to_mm, fit.pose.rotation, fit.pose.translation / to_mm),
        {"landmarks": error, **fit.residuals_mm},
        coverage,
        mesh,
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: the steps are small, and threads that wait for each other cost more.

    Raises:
        ImportError: without threadpoolctl.
    """
    with explained_import(
        "registration needs scipy and threadpoolctl: pip install 'facezoo[mesh]'"
    ):
        from threadpoolctl import threadpool_limits
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


def shape_model(mean: Array, basis: Array, triangles: Indices, landmarks: Indices) -> ShapeModel:
    """Build the shape model of a template; 68 landmarks define the face and an open mouth."""
    if len(landmarks) == 68:
        distances = np.linalg.norm(mean[:, None] - mean[landmarks], axis=2).min(1)
        face = distances < FACE_MM
    else:
        face = np.ones(len(mean), bool)
    loops = boundary_loops(triangles)
    outline = np.isin(np.arange(len(mean)), loops[0] if loops else [])
    starts = np.zeros((1, len(basis)))
    if len(landmarks) == 68 and len(basis):
        moving, fixed = landmarks[list(JAW)], landmarks[list(UPPER_FACE)]
        change = np.zeros((len(moving) + len(fixed), 3))
        change[: len(moving), 1] = -OPEN_MOUTH_MM
        flat = basis[:, np.concatenate([moving, fixed])].reshape(len(basis), -1)
        gram = flat @ flat.T + 4.0 * np.eye(len(basis))
        starts = np.stack([starts[0], np.linalg.solve(gram, flat @ change.ravel())])
    return ShapeModel(mean, basis, triangles, face, outline, starts)


@dataclass(frozen=True)
class _Start:
    """Surface in millimeters, and the initial pose of the template on it."""

    surface: Surface
    pose: Similarity
    units: str
    to_mm: float
    free_scale: bool


def _start(
    model: ShapeModel, vertices: Array, triangles: Indices, pose: Similarity, units: str | None
) -> _Start:
    """Find the unit, and place the template at its true scale."""
    name, factor = _unit(1 / pose.scale, units)
    to_mm = factor or 1 / pose.scale
    center = model.mean[model.face].mean(0)
    shift = pose.apply(center[None])[0] * to_mm - pose.rotation @ center
    start = Similarity(1.0, pose.rotation, shift)
    surface = _near_surface(vertices * to_mm, triangles, start, model.mean)
    return _Start(surface, start, name, to_mm, factor is None)


def _unit(mm_per_unit: float, stated: str | None) -> tuple[str, float | None]:
    """Name the unit that makes the face as large as the template, and its millimeters."""
    best = min(UNITS_MM, key=lambda name: abs(np.log(UNITS_MM[name] / mm_per_unit)))
    fits = abs(np.log(UNITS_MM[best] / mm_per_unit)) < np.log(UNIT_TOLERANCE)
    if stated is not None:
        ratio = mm_per_unit / UNITS_MM[stated]
        if not 1 / UNIT_TOLERANCE < ratio < UNIT_TOLERANCE:
            advice = f"the numbers look like {best}" if fits else "scale it to the size of a head"
            raise ValueError(
                f"in {stated} its face is {1 / ratio:.3g} times as large as the template; {advice}"
            )
        return stated, UNITS_MM[stated]
    return (f"taken as {best}", UNITS_MM[best]) if fits else ("unknown", None)


def _simplified(vertices: Array, triangles: Indices) -> tuple[Array, Indices]:
    """Merge vertices of a large mesh on a grid, and drop degenerate triangles."""
    triangles = triangles[_areas(vertices, triangles) > 0]
    cells = 400
    while len(triangles) > MAX_TRIANGLES:
        low = vertices.min(0)
        step = (vertices.max(0) - low).max() / cells
        keys = ((vertices - low) / step).astype(np.int64) @ np.array([1, 10_000, 100_000_000])
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        merged = np.stack([np.bincount(inverse, vertices[:, axis]) for axis in range(3)], 1)
        vertices, triangles = merged / counts[:, None], inverse[triangles]
        triangles = triangles[_areas(vertices, triangles) > 0]
        triangles = np.unique(triangles, axis=0)
        cells = int(cells * 0.8)
    return vertices, triangles


def _areas(vertices: Array, triangles: Indices) -> Array:
    a, b, c = (vertices[triangles[:, corner]] for corner in range(3))
    return np.linalg.norm(np.cross(b - a, c - a), axis=1)


def _near_surface(
    vertices: Array, triangles: Indices, pose: Similarity, template: Array
) -> Surface:
    """Keep the triangles near the template; ears, eyes and shoulders farther away go."""
    points = pose.inverse(vertices)
    low, high = template.min(0) - NEIGHBORHOOD_MM, template.max(0) + NEIGHBORHOOD_MM
    inside = ((points > low) & (points < high)).all(1)
    kept = triangles[inside[triangles].any(1)]
    used, inverse = np.unique(kept, return_inverse=True)
    return Surface(vertices[used], inverse.reshape(kept.shape))
