"""Automatic registration: find the face of any mesh, and fit the template to it.

The mesh is rendered from several directions. The face detector finds the face, and its five
landmarks are lifted to the surface. They give a similarity to the template, and so the units. Then
the template is fitted to the surface, see ``facezoo.geometry.registration``.

Letters: N vertices of the template, V vertices of the mesh, T triangles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import torch
from torch import Tensor

from facezoo.geometry.meshes import UNITS_MM, Mesh
from facezoo.geometry.rasterize import interpolate, rasterize
from facezoo.geometry.registration import (
    Array,
    Indices,
    ShapeModel,
    Similarity,
    Surface,
    fit_similarity,
    register_template,
    vertex_normals,
)

Find = Callable[[list[Tensor]], list[tuple[float, Array] | None]]
"""Finds the best face in each image (H, W, 3): score and landmarks in pixels, (5, 2)."""

SIZES = (256, 640)
"""Pixels of the renderings; the second size is for faces that are small in the mesh."""
CLOSE_UP_MM = 300.0
"""Extent of the rendering that refines the landmarks."""
MAX_TRIANGLES = 60_000
"""Larger meshes are rendered and registered with merged vertices."""
NEIGHBORHOOD_MM = 70.0
"""Surface that takes part: within this distance of the bounding box of the template."""
UNIT_TOLERANCE = 1.35
"""Largest factor between the size of a face and the template's for a unit to be accepted."""
COLOR, BACKGROUND = (224.0, 180.0, 160.0), (90.0, 95.0, 100.0)
LIGHT = (0.0, 0.35, 1.0)


@dataclass(frozen=True)
class View:
    """Orthographic rendering."""

    image: Tensor
    """uint8 RGB, (S, S, 3)."""
    depth: Array
    """z in the rotated frame, larger is nearer; NaN for background, (S, S)."""
    rotation: Array
    """From the mesh to the frame of the view: x right, y up, z towards the viewer, (3, 3)."""
    center: Array
    """Point of the mesh at the center of the image, (3,)."""
    pixels_per_unit: float

    def lift(self, pixels: Array) -> Array:
        """Lift pixels (K, 2) to the surface; over a hole, use the depth of its rim."""
        size = len(self.depth)
        rows, columns = np.nonzero(~np.isnan(self.depth))
        depths = self.depth[rows, columns]
        points = np.empty((len(pixels), 3))
        for index, (u, v) in enumerate(pixels):
            squared = np.square(rows - v) + np.square(columns - u)
            reach = max(2.0, 2 * float(squared.min()))
            near = np.exp(-squared / reach)
            points[index] = (u - (size - 1) / 2, (size - 1) / 2 - v, 0)
            points[index] /= self.pixels_per_unit
            points[index, 2] = (near * depths).sum() / near.sum()
        return points @ self.rotation + self.center


def render(
    vertices: Array, triangles: Indices, rotation: Array, center: Array, extent: float, size: int
) -> View:
    """Render a mesh with a headlight; back sides are dark."""
    points = (vertices - center) @ rotation.T
    scale = size / extent
    normals = vertex_normals(points, triangles)
    middle = (size - 1) / 2
    far = float(np.abs(points[:, 2]).max()) + 1
    u, v = points[:, 0] * scale + middle, middle - points[:, 1] * scale
    # An orthographic view: the depth decides the visible triangle, but not the perspective.
    z = 1000 + (far - points[:, 2]) / far
    projected = torch.from_numpy(np.stack([u, v, z], 1)).float()
    corners = torch.from_numpy(triangles)
    attributes = torch.from_numpy(np.concatenate([normals, points[:, 2:]], 1)).float()
    fragments = rasterize(projected[None], corners, (size, size))
    pixels = interpolate(fragments, attributes[None])[0]
    light = torch.nn.functional.normalize(torch.tensor(LIGHT), dim=0)
    facing = torch.nn.functional.normalize(pixels[..., :3], dim=-1)
    brightness = 0.15 + 0.85 * (facing @ light).clamp(min=0)
    mask = fragments.mask[0]
    image = torch.where(
        mask[..., None], brightness[..., None] * torch.tensor(COLOR), torch.tensor(BACKGROUND)
    )
    depth = pixels[..., 3].double().numpy()
    depth = np.where(mask.numpy(), depth, np.nan)
    return View(image.clamp(0, 255).byte(), depth, rotation, center, scale)


def directions() -> Iterator[Array]:
    """Yield the 24 rotations of a cube, the likely ones first: +z or -y forward, then others."""
    rotations = []
    for order, signs in product(
        [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)],
        product((1.0, -1.0), repeat=3),
    ):
        matrix = np.zeros((3, 3))
        matrix[range(3), order] = signs
        if np.linalg.det(matrix) > 0:
            rotations.append(matrix)
    z_up = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    rotations.sort(key=lambda m: (-np.trace(m), np.abs(m - z_up).sum()))
    likely = [np.eye(3), z_up]
    yield from likely
    yield from (m for m in rotations if not any(np.array_equal(m, known) for known in likely))


@dataclass(frozen=True)
class Registration:
    """A mesh with the template registered to it."""

    vertices: Tensor
    """Corresponding vertices in the frame of the template, millimetres, (N, 3)."""
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
        """The registered template as a mesh, millimetres."""
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
    find: Find,
    template_landmarks: Array,
    *,
    units: str | None = None,
    landmarks: tuple[Array, Array] | None = None,
) -> Registration:
    """Register the template to a mesh.

    Args:
        mesh: with triangles; its units count only if ``units`` is None.
        model: the template with its shape parameters.
        find: the face detector.
        template_landmarks: five landmarks that ``find`` detects on the rendered template, (5, 3).
        units: unit of the mesh, or None to find it.
        landmarks: points of the mesh and of the template that correspond, instead of detection.

    Raises:
        ValueError: if no face is found, or the mesh does not fit the template.
    """
    if mesh.triangles is None or not len(mesh.triangles):
        raise ValueError("registration needs triangles; pass a mesh, not a point cloud")
    vertices, triangles = _simplified(
        mesh.vertices.detach().double().cpu().numpy(), mesh.triangles.cpu().long().numpy()
    )
    if landmarks is None:
        pose = _find_pose(vertices, triangles, find, template_landmarks)
    else:
        pose = fit_similarity(landmarks[1], landmarks[0])
    name, factor = _unit(1 / pose.scale, units)
    free = factor is None
    to_mm = 1 / pose.scale if factor is None else factor
    vertices_mm = vertices * to_mm
    start = Similarity(
        1.0 if factor else pose.scale * to_mm, pose.rotation, pose.translation * to_mm
    )
    if factor is not None:  # keep the centers together at the true scale
        center = model.mean[model.face].mean(0)
        aim = pose.apply(center[None])[0] * to_mm
        start = Similarity(1.0, pose.rotation, aim - pose.rotation @ center)
    surface = _near_surface(vertices_mm, triangles, start, model.mean)
    fit = register_template(model, surface, start, free_scale=free)
    pose_source = Similarity(
        fit.pose.scale / to_mm, fit.pose.rotation, fit.pose.translation / to_mm
    )
    return Registration(
        torch.from_numpy(fit.vertices).float(),
        torch.from_numpy(model.triangles),
        name,
        pose_source,
        fit.residuals_mm,
        float((fit.matched & model.face).sum() / model.face.sum()),
        mesh,
    )


def _unit(mm_per_unit: float, stated: str | None) -> tuple[str, float | None]:
    """Name the unit that makes the face as large as the template, and its millimetres."""
    names = {**UNITS_MM, "dm": 100.0, "inch": 25.4}
    best = min(names, key=lambda name: abs(np.log(names[name] / mm_per_unit)))
    fits = abs(np.log(names[best] / mm_per_unit)) < np.log(UNIT_TOLERANCE)
    if stated is not None:
        ratio = mm_per_unit / UNITS_MM[stated]
        if not 1 / UNIT_TOLERANCE < ratio < UNIT_TOLERANCE:
            advice = f"the numbers look like {best}" if fits else "scale it to the size of a head"
            raise ValueError(
                f"in {stated} its face is {1 / ratio:.3g} times as large as the template; {advice}"
            )
        return stated, UNITS_MM[stated]
    return (f"taken as {best}", names[best]) if fits else ("unknown", None)


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


def landmarks_of(view: View, found: tuple[float, Array] | None) -> Array | None:
    """Lift the landmarks of a detection to the surface, (5, 3)."""
    return None if found is None else view.lift(found[1])


def _find_pose(
    vertices: Array, triangles: Indices, find: Find, template_landmarks: Array
) -> Similarity:
    """Find the similarity from the template to the mesh by renderings.

    Raises:
        ValueError: if no face is found from any direction.
    """
    center = (vertices.max(0) + vertices.min(0)) / 2
    extent = 1.05 * float(np.linalg.norm(vertices.max(0) - vertices.min(0)))
    best: tuple[float, Similarity] | None = None
    for size in SIZES:
        for rotation in directions():
            view = render(vertices, triangles, rotation, center, extent, size)
            points = landmarks_of(view, find([view.image])[0])
            if points is None:
                continue
            pose = fit_similarity(template_landmarks, points)
            error = _misfit(pose, template_landmarks, points)
            if best is None or error < best[0]:
                best = error, pose
            if error < 5:
                break
        if best is not None:
            break
    if best is None:
        raise ValueError(
            "no face was found in renderings from 24 directions; pass landmarks=, or check that "
            "the mesh shows a face with eyes, nose and mouth"
        )
    error, pose = best
    for _ in range(3):
        frame = pose.rotation.T
        middle = pose.apply(template_landmarks.mean(0)[None])[0]
        view = render(vertices, triangles, frame, middle, CLOSE_UP_MM * pose.scale, SIZES[0])
        points = landmarks_of(view, find([view.image])[0])
        if points is None:
            break
        refined = fit_similarity(template_landmarks, points)
        now = _misfit(refined, template_landmarks, points)
        pose, previous, error = refined, error, now
        if abs(previous - now) < 0.2:
            break
    if error > 15:
        raise ValueError(
            f"the face that was found does not have the shape of a face (landmarks {error:.0f} mm "
            "off): the surface may be turned inside out or mirrored in depth"
        )
    return pose


def _misfit(pose: Similarity, template_landmarks: Array, points: Array) -> float:
    """Return the mean distance of the landmarks after the alignment, mm."""
    return float(np.linalg.norm(pose.inverse(points) - template_landmarks, axis=1).mean())
