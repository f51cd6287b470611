"""Changes of the topology of a head mesh: fewer or more triangles, missing parts and noise.

Each change takes vertices in millimeters, (V, 3), with +y up and +z out of the face, triangles
(T, 3) and a random generator, and returns new vertices and triangles.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from facezoo.errors import explained_import

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Change = Callable[[Array, Indices, np.random.Generator], tuple[Array, Indices]]

NECK_MM = -95.0
"""Height of the cut below the chin of ICT-3D's heads."""


def decimate(vertices: Array, triangles: Indices, count: int) -> tuple[Array, Indices]:
    """Decimate a mesh to about ``count`` vertices by quadric edge collapse, in float32.

    The result depends on the unit.

    Raises:
        ImportError: without fast-simplification.
    """
    with explained_import(
        "simplifying meshes needs fast-simplification: pip install 'facezoo[mesh]'"
    ):
        import fast_simplification
    points, corners = fast_simplification.simplify(
        vertices.astype(np.float32),
        triangles.astype(np.int32),
        target_reduction=max(0.0, 1 - count / len(vertices)),
    )
    return points.astype(float), corners.astype(np.int64)


def decimated(count: int) -> Change:
    """Return the change that decimates to ``count`` vertices; see ``decimate``."""

    def change(
        vertices: Array, triangles: Indices, _: np.random.Generator
    ) -> tuple[Array, Indices]:
        return decimate(vertices, triangles, count)

    return change


def unchanged(vertices: Array, triangles: Indices, _: np.random.Generator) -> tuple[Array, Indices]:
    """Keep the full resolution."""
    return vertices, triangles


def cut_at_the_neck(
    vertices: Array, triangles: Indices, _: np.random.Generator
) -> tuple[Array, Indices]:
    """Remove everything below the chin."""
    return without(vertices[:, 1] < NECK_MM, vertices, triangles)


def front_half(
    vertices: Array, triangles: Indices, _: np.random.Generator
) -> tuple[Array, Indices]:
    """Remove the back half of the head."""
    return without(vertices[:, 2] < np.median(vertices[:, 2]), vertices, triangles)


def with_holes(
    vertices: Array, triangles: Indices, generator: np.random.Generator
) -> tuple[Array, Indices]:
    """Remove a tenth of the vertices around five random ones."""
    centers = vertices[generator.integers(len(vertices), size=5)]
    distances = np.linalg.norm(vertices[:, None] - centers, axis=2).min(1)
    return without(distances < np.quantile(distances, 0.1), vertices, triangles)


def noisy(
    vertices: Array, triangles: Indices, generator: np.random.Generator
) -> tuple[Array, Indices]:
    """Add 0.5 mm of Gaussian noise to every coordinate."""
    return vertices + 0.5 * generator.standard_normal(vertices.shape), triangles


def without(mask: NDArray[np.bool_], vertices: Array, triangles: Indices) -> tuple[Array, Indices]:
    """Remove the vertices of a mask, (V,), and their triangles."""
    kept = triangles[~mask[triangles].any(1)]
    used, inverse = np.unique(kept, return_inverse=True)
    return vertices[used], inverse.reshape(kept.shape)
