"""Find the face of a mesh: render it from several directions, and detect the face.

Letters: V vertices, T triangles, S pixels, K landmarks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from torch import Tensor

from facezoo.geometry.rasterize import interpolate, rasterize
from facezoo.geometry.registration import Array, Indices, Similarity, fit_similarity, vertex_normals
from facezoo.preprocess.bundled import load_detector
from facezoo.preprocess.detection import DetectionConfig, detect

ROUNDS = ((256, 1.0), (640, 1.0), (256, 0.5))
"""Pixels of the renderings, and factor on the score threshold of the detector. A later round starts
if no face was found: small faces need large renderings, and unusual faces have low scores."""
CLOSE_UP = 256
"""Pixels of a close-up."""
CLOSE_UP_MM = 300.0
"""Extent of the rendering that refines the landmarks."""
GOOD_MM, BAD_MM = 1.2, 8.0
"""Distance of the landmarks after alignment that ends the search, and that rejects a face."""
WITHOUT_NOSE_MM = 2.0
"""Largest distance of the landmarks without the nose tip."""
MAX_POSES, MIN_TURN_DEG = 3, 40.0
"""Number of poses to return, and the least rotation between two of them."""
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
    light = torch.nn.functional.normalize(pixels.new_tensor(LIGHT), dim=0)
    facing = torch.nn.functional.normalize(pixels[..., :3], dim=-1)
    brightness = 0.15 + 0.85 * (facing @ light).clamp(min=0)
    mask = fragments.mask[0]
    color, background = pixels.new_tensor(COLOR), pixels.new_tensor(BACKGROUND)
    image = torch.where(mask[..., None], brightness[..., None] * color, background)
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


def detect_landmarks(view: View, leniency: float = 1.0) -> Array | None:
    """Detect the best face of a rendering and lift its five landmarks, (5, 3); None without one."""
    config = DetectionConfig()
    config = replace(config, score_threshold=leniency * config.score_threshold)
    faces = detect(load_detector(torch.device("cpu")), [view.image], config)
    if not len(faces.scores):
        return None
    return view.lift(faces.landmarks[int(faces.scores.argmax())].double().numpy())


def template_landmarks(vertices: Array, triangles: Indices) -> Array:
    """Detect the five landmarks of the template, as on any other mesh, (5, 3).

    Raises:
        ValueError: if the template does not show a face.
    """
    view = render(vertices, triangles, np.eye(3), vertices.mean(0), CLOSE_UP_MM, CLOSE_UP)
    landmarks = detect_landmarks(view)
    if landmarks is None:
        raise ValueError("no face was detected on the template of this model; pass landmarks=")
    return landmarks


def find_poses(
    vertices: Array, triangles: Indices, reference: Array
) -> list[tuple[float, Similarity]]:
    """Find the similarity from the template to a mesh by renderings.

    Args:
        vertices: of the mesh, in any units, (V, 3).
        triangles: (T, 3).
        reference: ``template_landmarks``, (5, 3).

    Returns:
        One clear pose, or up to three possible ones, best first: the mean distance of the
        landmarks after alignment, mm, and the similarity.

    Raises:
        ValueError: if no face is found from any direction.
    """
    middle = (vertices.max(0) + vertices.min(0)) / 2
    extent = 1.05 * float(np.linalg.norm(vertices.max(0) - vertices.min(0)))
    poses: list[tuple[float, Similarity]] = []
    for (size, leniency), rotation in product(ROUNDS, directions()):
        if (size, leniency) != ROUNDS[0] and any(error < BAD_MM for error, _ in poses):
            break
        view = render(vertices, triangles, rotation, middle, extent, size)
        points = detect_landmarks(view, leniency)
        if points is None:
            continue
        pose, error = _fit(reference, points)
        for _ in range(2):  # close-ups from the front; a wrong detection does not improve
            if error > 4 * BAD_MM:
                break
            center = pose.apply(reference.mean(0)[None])[0]
            frontal, close_up = pose.rotation.T, CLOSE_UP_MM * pose.scale
            view = render(vertices, triangles, frontal, center, close_up, CLOSE_UP)
            points = detect_landmarks(view, leniency)
            if points is None:
                break
            pose, error = _fit(reference, points)
        if error < GOOD_MM:
            return [(error, pose)]
        poses.append((error, pose))
    if not poses:
        raise ValueError(
            f"no face was found in renderings from 24 directions; {_advice(vertices, triangles)}"
        )
    distinct: list[tuple[float, Similarity]] = []
    for error, pose in sorted(poses, key=lambda entry: entry[0]):
        turns = [np.trace(other.rotation.T @ pose.rotation) for _, other in distinct]
        if all(trace < 1 + 2 * np.cos(np.radians(MIN_TURN_DEG)) for trace in turns):
            distinct.append((error, pose))
    if distinct[0][0] > BAD_MM:
        raise ValueError(
            f"a face was found, but its landmarks are {distinct[0][0]:.0f} mm from a face's after "
            f"alignment; {_advice(vertices, triangles)}"
        )
    return [entry for entry in distinct if entry[0] < BAD_MM][:MAX_POSES]


def _advice(vertices: Array, triangles: Indices) -> str:
    """Suggest what to do about a missing face; inward triangles have a negative volume."""
    a, b, c = (vertices[triangles[:, corner]] - vertices.mean(0) for corner in range(3))
    if np.einsum("tx,tx->", a, np.cross(b, c)) < 0:
        return (
            "its triangles face inwards: reverse the order of their vertices, or negate one "
            "coordinate if the mesh is mirrored"
        )
    return "pass landmarks=, or check that the mesh shows a face with eyes, nose and mouth"


def _fit(reference: Array, points: Array) -> tuple[Similarity, float]:
    """Fit the similarity to landmarks, (5, 3) each; returns it and the mean distance, mm.

    If they do not fit, the nose tip may lie over a hole: then the other four decide, if they fit
    well. They are nearly in a plane, so many arrangements fit them roughly.
    """
    fits = []
    for rows in ([0, 1, 2, 3, 4], [0, 1, 3, 4]):
        pose = fit_similarity(reference[rows], points[rows])
        distances = np.linalg.norm(pose.inverse(points[rows]) - reference[rows], axis=1)
        fits.append((pose, float(distances.mean())))
    without_nose = fits[0][1] > BAD_MM and fits[1][1] < WITHOUT_NOSE_MM
    return fits[1] if without_nose else fits[0]
