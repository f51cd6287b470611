"""Registration of a template to the surface of a mesh in another topology.

The template is fitted in three steps: a rigid ICP, a linear shape model with a Gaussian prior, and
smooth displacements (non-rigid ICP). Arrays are NumPy, float64, in millimeters.

Source: Amberg, Romdhani & Vetter, "Optimal Step Nonrigid ICP Algorithms for Surface Registration",
CVPR 2007, for the displacement step; Chen & Medioni, 1992, for the distance to the tangent plane.

Letters: N vertices of the template, T triangles, P points, K candidates, D shape parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]

CANDIDATES = 6
"""Triangles with the nearest centroids that may hold the closest point."""
CHUNK = 16_384
"""Points per search, which limits the memory."""
MIN_COSINE = 0.7
"""Smallest cosine between the normals of matching points."""
SIGMAS_MM = (6.0, 4.0, 3.0, 2.0, 1.5, 1.0, 0.7, 0.5, 0.3, 0.3)
"""Standard deviation of the surface distance in each iteration of the shape model."""
SHARED_ERRORS = 5.0
"""Factor on the distance from the surface that neighboring vertices share. The product is the least
standard deviation: where the shape model cannot follow the surface, errors are not independent."""
STIFFNESS = (20.0, 5.0, 2.0)
"""Weight of the differences between neighboring displacements, in each iteration."""
FARTHEST_MM, RIM_MM = 40.0, 5.0
"""Largest distance of a match, and of a match on the boundary of the surface."""
SLIDING = 0.03
"""Weight of the distance along the surface, relative to the distance to the tangent plane."""


@dataclass(frozen=True)
class Similarity:
    """x → scale · R x + translation."""

    scale: float
    rotation: Array
    """(3, 3)."""
    translation: Array
    """(3,)."""

    def apply(self, points: Array) -> Array:
        """Transform points (P, 3)."""
        return self.scale * points @ self.rotation.T + self.translation

    def inverse(self, points: Array) -> Array:
        """Transform points (P, 3) back."""
        return (points - self.translation) @ self.rotation / self.scale

    def after(self, first: Similarity) -> Similarity:
        """Compose: apply ``first``, then this one."""
        return Similarity(
            self.scale * first.scale,
            self.rotation @ first.rotation,
            self.apply(first.translation[None])[0],
        )


def fit_similarity(source: Array, target: Array, scale: float | None = None) -> Similarity:
    """Fit the similarity from points (P, 3) to corresponding points by least squares.

    Source: Umeyama, "Least-squares estimation of transformation parameters between two point
    patterns", 1991.

    Args:
        source: three or more points.
        target: the corresponding points.
        scale: fixed scale; None estimates it.
    """
    center, aim = source.mean(0), target.mean(0)
    left, values, right = np.linalg.svd((target - aim).T @ (source - center))
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    rotation = left * signs @ right
    if scale is None:
        scale = float((values * signs).sum() / np.square(source - center).sum())
    return Similarity(scale, rotation, aim - scale * rotation @ center)


def vertex_normals(vertices: Array, triangles: Indices) -> Array:
    """Compute area-weighted unit normals, (N, 3); 0 for vertices without triangles."""
    a, b, c = (vertices[triangles[:, corner]] for corner in range(3))
    normals = np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(normals, triangles[:, corner], np.cross(b - a, c - a))
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def _edges(triangles: Indices) -> tuple[Indices, Indices]:
    """List every edge once, (E, 2), with its number of triangles, (E,)."""
    pairs = np.sort(triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    unique, counts = np.unique(pairs, axis=0, return_counts=True)
    return unique, counts


def boundary_loops(triangles: Indices) -> list[Indices]:
    """List the vertices of each boundary loop of a mesh, largest loop first."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges, counts = _edges(triangles)
    border = edges[counts == 1]
    if not len(border):
        return []
    count = int(triangles.max()) + 1
    graph = coo_array((np.ones(len(border)), (border[:, 0], border[:, 1])), shape=(count, count))
    labels = connected_components(graph, directed=False)[1]
    vertices = np.unique(border)
    loops = [vertices[labels[vertices] == label] for label in np.unique(labels[vertices])]
    return sorted(loops, key=len, reverse=True)


@dataclass(frozen=True)
class Closest:
    """Closest points on a surface, P."""

    points: Array
    """(P, 3)."""
    triangles: Indices
    """Triangle of each point, (P,)."""
    weights: Array
    """Barycentric weights of its corners, (P, 3)."""
    distances: Array
    """(P,)."""
    normals: Array
    """Unit normal of the surface at each point, (P, 3)."""
    on_boundary: Mask
    """True on the boundary of the surface, (P,)."""


class Surface:
    """Triangle mesh, (N, 3) and (T, 3) without degenerate triangles, that finds closest points."""

    def __init__(self, vertices: Array, triangles: Indices) -> None:
        from scipy.spatial import cKDTree

        self.vertices, self.triangles = vertices, triangles
        self.corners = vertices[triangles]  # (T, 3, 3)
        self.normals = vertex_normals(vertices, triangles)
        self.tree = cKDTree(self.corners.mean(1))
        self.border = np.zeros(len(vertices), bool)
        for loop in boundary_loops(triangles):
            self.border[loop] = True

    def closest(self, points: Array) -> Closest:
        """Find the closest point of the surface to each point (P, 3)."""
        parts = [self._closest(points[i : i + CHUNK]) for i in range(0, len(points), CHUNK)]
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return Closest(*(np.concatenate(column) for column in columns))

    def _closest(self, points: Array) -> Closest:
        count = min(CANDIDATES, len(self.triangles))
        candidates = self.tree.query(points, count)[1].reshape(len(points), count)
        weights = _barycentric(points[:, None], self.corners[candidates])  # (P, K, 3)
        spots = np.einsum("pkc,pkcx->pkx", weights, self.corners[candidates])
        best = np.linalg.norm(spots - points[:, None], axis=2).argmin(1)
        rows = np.arange(len(points))
        spot, weight, triangle = spots[rows, best], weights[rows, best], candidates[rows, best]
        corners = self.triangles[triangle]
        normals = np.einsum("pc,pcx->px", weight, self.normals[corners])
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        on_boundary = (self.border[corners] | (weight < 1e-6)).all(1)
        distances = np.linalg.norm(spot - points, axis=1)
        return Closest(spot, triangle, weight, distances, normals, on_boundary)


def _barycentric(points: Array, corners: Array) -> Array:
    """Compute weights (P, K, 3) of the points of triangles (P, K, 3, 3) closest to (P, 1, 3)."""
    a, b, c = corners[..., 0, :], corners[..., 1, :], corners[..., 2, :]
    ab, ac, ap = b - a, c - a, points - a
    d00, d01, d11 = (ab * ab).sum(-1), (ab * ac).sum(-1), (ac * ac).sum(-1)
    d20, d21 = (ap * ab).sum(-1), (ap * ac).sum(-1)
    area = np.maximum(d00 * d11 - d01 * d01, 1e-24)
    v, w = (d11 * d20 - d01 * d21) / area, (d00 * d21 - d01 * d20) / area
    inside = np.stack([1 - v - w, v, w], -1)
    # Outside: the best of the three edges.
    options, squared = [], []
    for first, second in ((0, 1), (1, 2), (2, 0)):
        start, along = corners[..., first, :], corners[..., second, :] - corners[..., first, :]
        share = ((points - start) * along).sum(-1) / np.maximum((along * along).sum(-1), 1e-24)
        share = share.clip(0, 1)
        option = np.zeros_like(inside)
        option[..., first], option[..., second] = 1 - share, share
        options.append(option)
        squared.append(np.square(start + share[..., None] * along - points).sum(-1))
    best = np.stack(squared).argmin(0)
    edge = np.take_along_axis(np.stack(options), best[None, ..., None], 0)[0]
    return np.where((inside >= 0).all(-1, keepdims=True), inside, edge)


@dataclass(frozen=True)
class ShapeModel:
    """Template with linear shape parameters of unit variance."""

    mean: Array
    """(N, 3)."""
    basis: Array
    """Shape change per standard deviation, (D, N, 3); D may be 0."""
    triangles: Indices
    """(T, 3)."""
    face: Mask
    """Vertices of the face, without skull, ears and neck, (N,)."""
    outline: Mask
    """Vertices of the outer boundary, (N,)."""
    starts: Array
    """Initial shape parameters, such as a closed and an open mouth, (S, D)."""


@dataclass(frozen=True)
class Fit:
    """Result of a registration, in the frame of the template."""

    vertices: Array
    """Corresponding vertices, (N, 3)."""
    pose: Similarity
    """From the frame of the template to the surface."""
    parameters: Array
    """Of the shape model, (D,)."""
    matched: Mask
    """Vertices with a matching point on the surface, (N,)."""
    residuals_mm: dict[str, float]
    """Mean distance of the matched face vertices from the surface after each step."""


def register_template(
    model: ShapeModel, surface: Surface, pose: Similarity, *, free_scale: bool = False
) -> Fit:
    """Register the template to a surface.

    Args:
        model: the template.
        surface: in millimeters, or in any units with ``free_scale``.
        pose: initial guess, from the template to the surface.
        free_scale: estimate the scale too.
    """
    residuals: dict[str, float] = {}
    pose = _rigid_icp(model, surface, pose, free_scale)
    residuals["rigid"] = _residual(model, surface, pose, model.mean)
    fits = [_fit_shape(model, surface, pose, start) for start in model.starts]
    shape, pose, parameters = min(fits, key=lambda fit: _residual(model, surface, fit[1], fit[0]))
    residuals["shape"] = _residual(model, surface, pose, shape)
    vertices, matched = _fit_displacements(model, surface, pose, shape)
    residuals["surface"] = _residual(model, surface, pose, vertices)
    return Fit(vertices, pose, parameters, matched, residuals)


def rigid_residual(model: ShapeModel, surface: Surface, pose: Similarity) -> float:
    """Return the distance of the face after a short rigid ICP, mm, to compare poses.

    Unmatched vertices count with ``FARTHEST_MM``.
    """
    pose = _rigid_icp(model, surface, pose, False, steps=10)
    rows = np.flatnonzero(model.face)[::2]
    matches, valid = _match(model, surface, pose, model.mean, rows)
    return float(np.where(valid, matches.distances, FARTHEST_MM).mean())


def _match(
    model: ShapeModel,
    surface: Surface,
    pose: Similarity,
    shape: Array,
    rows: Indices | slice = slice(None),
) -> tuple[Closest, Mask]:
    """Match vertices of a shape; returns matches in its frame, and a mask of the valid ones."""
    closest = surface.closest(pose.apply(shape[rows]))
    matches = replace(
        closest,
        points=pose.inverse(closest.points),
        distances=closest.distances / pose.scale,
        normals=closest.normals @ pose.rotation,
    )
    normals = vertex_normals(shape, model.triangles)[rows]
    facing = (normals * matches.normals).sum(1) > MIN_COSINE
    # Past the rim of a hole, or of the surface, there is no match.
    cut = matches.on_boundary & (model.outline[rows] | (matches.distances > RIM_MM))
    return matches, facing & ~cut & (matches.distances < FARTHEST_MM)


def _robust_weights(distances: Array, valid: Mask) -> Array:
    """Weigh matches by Tukey's function of their distance."""
    if not valid.any():
        return np.zeros(len(distances))
    limit = max(3.0, 4 * 1.4826 * float(np.median(distances[valid])))
    weights = np.square(1 - np.square(np.minimum(distances / limit, 1)))
    return np.where(valid, weights, 0.0)


def _residual(model: ShapeModel, surface: Surface, pose: Similarity, shape: Array) -> float:
    matches, valid = _match(model, surface, pose, shape)
    mask = valid & model.face
    return float(matches.distances[mask].mean()) if mask.any() else float("inf")


def _rigid_icp(
    model: ShapeModel, surface: Surface, pose: Similarity, free_scale: bool, steps: int = 25
) -> Similarity:
    """Refine the pose by trimmed ICP on the face: the farthest fifth of the matches is ignored."""
    rows = np.flatnonzero(model.face)[::2]
    points = model.mean[rows]
    for _ in range(steps):
        matches, valid = _match(model, surface, pose, model.mean, rows)
        mask = valid & ~matches.on_boundary
        if mask.sum() < 50:
            return pose
        mask &= matches.distances <= np.quantile(matches.distances[mask], 0.8)
        scale = None if free_scale else 1.0
        step = fit_similarity(points[mask], matches.points[mask], scale)
        pose = pose.after(step)
        if np.linalg.norm(step.apply(points) - points, axis=1).mean() < 0.05:
            break
    return pose


def _fit_shape(
    model: ShapeModel, surface: Surface, pose: Similarity, start: Array
) -> tuple[Array, Similarity, Array]:
    """Fit the shape parameters and the pose; the prior is a unit Gaussian."""
    from scipy.spatial.transform import Rotation

    size, edges = len(model.basis), _edges(model.triangles)[0]
    parameters = start
    shape = model.mean + np.tensordot(start, model.basis, 1)
    for sigma in SIGMAS_MM:
        matches, valid = _match(model, surface, pose, shape)
        weights = _robust_weights(matches.distances, valid)
        # Unknowns: rotation vector, translation, and the shape parameters.
        turn = np.stack([np.cross(axis, shape) for axis in np.eye(3)])  # (3, N, 3)
        shift = np.broadcast_to(np.eye(3)[:, None], turn.shape)
        columns = np.concatenate([turn, shift, model.basis]).transpose(1, 0, 2)  # (N, 6 + D, 3)
        gap = matches.points - model.mean
        along = np.einsum("nkx,nx->nk", columns, matches.normals)
        distance = (gap * matches.normals).sum(1)
        gram = (along * weights[:, None]).T @ along
        right = along.T @ (weights * distance)
        flat = columns.transpose(0, 2, 1).reshape(-1, columns.shape[1])  # (3 N, 6 + D)
        repeated = np.repeat(weights, 3) * SLIDING**2
        gram += (flat * repeated[:, None]).T @ flat
        right += flat.T @ (repeated * gap.reshape(-1))
        gaps = weights * ((matches.points - shape) * matches.normals).sum(1)
        shared = (gaps[edges[:, 0]] * gaps[edges[:, 1]]).sum()
        shared /= max(1e-9, (weights[edges[:, 0]] * weights[edges[:, 1]]).sum())
        prior = np.zeros(6 + size)
        prior[6:] = max(sigma**2, SHARED_ERRORS**2 * shared)
        solution = np.linalg.solve(gram + np.diag(prior + 1e-9), right)
        parameters = solution[6:]
        turned = Rotation.from_rotvec(solution[:3]).as_matrix()
        step = Similarity(1.0, turned, solution[3:6])
        pose = pose.after(step)
        shape = model.mean + np.tensordot(parameters, model.basis, 1)
    return shape, pose, parameters


def _fit_displacements(
    model: ShapeModel, surface: Surface, pose: Similarity, shape: Array
) -> tuple[Array, Mask]:
    """Add smooth displacements that close the remaining gap to the surface."""
    from scipy.sparse import coo_array, diags_array, kron
    from scipy.sparse.linalg import splu

    count = len(shape)
    edges, _ = _edges(model.triangles)
    rows = np.repeat(np.arange(len(edges)), 2)
    signs = np.tile([1.0, -1.0], len(edges))
    incidence: Any = coo_array((signs, (rows, edges.ravel())), shape=(len(edges), count))
    laplacian = kron((incidence.T @ incidence).tocsr(), np.eye(3), format="csc")
    vertices, valid = shape, np.zeros(count, bool)
    for stiffness in STIFFNESS:
        matches, valid = _match(model, surface, pose, vertices)
        weights = _robust_weights(matches.distances, valid)
        normals = matches.normals
        blocks = normals[:, :, None] * normals[:, None] + SLIDING**2 * np.eye(3)
        blocks *= weights[:, None, None]
        base = 3 * np.arange(count)[:, None, None]
        row = np.broadcast_to(base + np.arange(3)[:, None], blocks.shape).ravel()
        column = np.broadcast_to(base + np.arange(3), blocks.shape).ravel()
        data: Any = coo_array((blocks.ravel(), (row, column)), shape=(3 * count, 3 * count))
        right = np.einsum("nij,nj->ni", blocks, matches.points - shape).ravel()
        system = data + stiffness * laplacian + diags_array(np.full(3 * count, 1e-6))
        vertices = shape + splu(system.tocsc()).solve(right).reshape(-1, 3)
    return vertices, valid
