"""Rasterization of triangle meshes, differentiable inside triangles.

The search for the visible triangles has no gradients. Weights, depth and colors are then computed
from the corners of the visible triangle, with gradients. Silhouettes have no gradient.

Rules:

* A pixel samples its center, at whole numbers u, v as in ``facezoo.geometry.camera``.
* Edges belong to the triangle: a center on an edge, or up to ``EDGE_TOLERANCE`` outside, is
  covered. So an unrotated depth map, whose vertices are pixel centers, is reproduced in full.
  Weights of outside points are those of the nearest point of the triangle.
* The nearest depth wins; for equal depths the triangle with the lowest index wins.
* Both sides of a triangle are visible. Triangles that are edge-on (below ``MIN_AREA``), reach
  behind the camera or are not finite are skipped; there is no clipping.
* Interpolation is perspective-correct.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

Renderer = Literal["auto", "torch", "pytorch3d"]
Corners = tuple[Tensor, Tensor, Tensor]
Search = Callable[[Tensor, Tensor, tuple[int, int]], Tensor]

NOBODY = torch.iinfo(torch.int64).max
MAX_PAIRS = 2**21
"""Pairs of triangles and pixels per chunk; about 200 bytes each."""

EDGE_TOLERANCE = 1e-4
"""Tolerance around edges, pixels: ten times the rounding of float32 coordinates at 128 pixels."""

MIN_AREA = 1e-6
"""Twice the area below which a triangle covers nothing, square pixels."""


@dataclass(frozen=True)
class Fragments:
    """The visible triangle of each pixel of B images."""

    triangle: Tensor
    """Index of the triangle, -1 for background, int64, (B, H, W)."""
    corners: Tensor
    """Its vertices, 0 for background, int64, (B, H, W, 3)."""
    weights: Tensor
    """Perspective-correct weights of the corners, summing to one; 0 for background,
    (B, H, W, 3)."""
    depth: Tensor
    """z at the pixel center, 0 for background, (B, H, W)."""

    @property
    def mask(self) -> Tensor:
        """Foreground pixels, bool, (B, H, W)."""
        return self.triangle >= 0


def rasterize(
    projected: Tensor, triangles: Tensor, size: tuple[int, int], renderer: Renderer = "auto"
) -> Fragments:
    """Find the visible triangle of each pixel, for B meshes with the same triangles.

    Args:
        projected: u, v in pixels and z of the vertices, from ``Camera.project``, (B, N, 3).
        triangles: vertex indices, int64, (F, 3).
        size: height and width of the images, pixels.
        renderer: ``"torch"``, ``"pytorch3d"`` (installed separately; square images only) or
            ``"auto"``, which is torch: it is faster for depth maps and covers edges.

    Returns:
        Fragments; ``weights`` and ``depth`` carry gradients to ``projected``.

    Raises:
        ValueError: if shapes or the name of the renderer are wrong.
        ImportError: if PyTorch3D is requested and not installed.
    """
    _check(projected, triangles, size)
    search = _search(renderer)
    with torch.no_grad():
        triangle = search(projected.detach(), triangles, size)
    return _fragments(projected, triangles, triangle)


def interpolate(fragments: Fragments, attributes: Tensor) -> Tensor:
    """Interpolate vertex attributes at the pixels, 0 for background.

    Args:
        fragments: result of `rasterize` for B images.
        attributes: attributes of the vertices, (B, N, C).

    Returns:
        (B, H, W, C), with gradients to the attributes and to the positions.

    Raises:
        ValueError: if ``attributes`` has another shape.
    """
    if attributes.ndim != 3 or len(attributes) != len(fragments.triangle):
        raise ValueError(
            f"attributes must be ({len(fragments.triangle)}, N, C), got {tuple(attributes.shape)}; "
            "repeat shared attributes with expand()"
        )
    return (fragments.weights[..., None] * _gather(attributes, fragments.corners)).sum(-2)


def has_pytorch3d() -> bool:
    """Return True if PyTorch3D is installed."""
    return find_spec("pytorch3d") is not None


def _search(renderer: str) -> Search:
    if renderer in ("auto", "torch"):
        return _search_torch
    if renderer != "pytorch3d":
        raise ValueError(f"renderer must be 'auto', 'torch' or 'pytorch3d', got {renderer!r}")
    if not has_pytorch3d():
        raise ImportError(
            "renderer='pytorch3d' needs PyTorch3D, which is not installed; "
            "renderer='torch' gives the same images without it"
        )
    return _search_pytorch3d


def _check(projected: Tensor, triangles: Tensor, size: tuple[int, int]) -> None:
    if projected.ndim != 3 or projected.shape[-1] != 3:
        raise ValueError(f"projected must be (B, N, 3), got {tuple(projected.shape)}")
    if triangles.ndim != 2 or triangles.shape[-1] != 3 or triangles.dtype != torch.int64:
        raise ValueError(
            f"triangles must be (F, 3) of int64, got {tuple(triangles.shape)} of {triangles.dtype}"
        )
    low, high = (int(triangles.min()), int(triangles.max())) if len(triangles) else (0, 0)
    if len(triangles) and not 0 <= low <= high < projected.shape[1]:
        raise ValueError(
            f"triangles must use vertices 0 to {projected.shape[1] - 1}, got {low} to {high}"
        )
    if min(size) < 1:
        raise ValueError(f"size must be 1 pixel or more each way, got {size}")


# --- the search -----------------------------------------------------------------------------------


def _search_torch(projected: Tensor, triangles: Tensor, size: tuple[int, int]) -> Tensor:
    """Find the visible triangle of each pixel, -1 for background, (B, H, W).

    Every triangle is paired with the pixels of its bounding box, in flat ragged lists: about one
    pair per triangle if triangles are as large as pixels. Pairs that do not cover are dropped, and
    a scatter of minima is the z-buffer. Only thousands of large triangles need several lists.
    """
    count, pixels = len(projected), size[0] * size[1]
    a, b, c = (projected.index_select(1, corner).flatten(0, 1) for corner in triangles.unbind(-1))
    first, columns, rows = _boxes((a, b, c), size)
    nearest = projected.new_full((count * pixels,), torch.inf)
    winner = torch.full_like(nearest, NOBODY, dtype=torch.int64)
    for chunk in _chunks(columns * rows):
        triangle, u, v = _pairs(chunk, first, columns, rows)
        corners = [corner.index_select(0, triangle) for corner in (a, b, c)]
        inside, depth = _cover((corners[0], corners[1], corners[2]), u, v)
        triangle, u, v, depth = triangle[inside], u[inside], v[inside], depth[inside]
        image, triangle = _divmod(triangle, len(triangles))
        pixel = image * pixels + v * size[1] + u

        before = nearest.clone()
        nearest.scatter_reduce_(0, pixel, depth, "amin")
        winner = winner.where(nearest == before, NOBODY)
        front = depth == nearest[pixel]
        winner.scatter_reduce_(0, pixel[front], triangle[front], "amin")
    return winner.where(winner != NOBODY, -1).view(count, *size)


def _boxes(corners: Corners, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Find the image pixels in the bounding boxes of triangles.

    Args:
        corners: u, v, z of the first, second and third corners, each (M, 3).
        size: height and width.

    Returns:
        u and v of the first pixel, (M, 2), columns (M,) and rows (M,); 0 for skipped triangles.
    """
    a, b, c = corners
    low, high = a.minimum(b).minimum(c), a.maximum(b).maximum(c)  # NaN where a corner has one
    usable = (low[:, 2] > 0) & low.sum(-1).isfinite() & high.sum(-1).isfinite()
    limit = a.new_tensor([size[1] - 1, size[0] - 1])
    first = (low[:, :2] - EDGE_TOLERANCE).ceil().clamp(min=0)
    last = (high[:, :2] + EDGE_TOLERANCE).floor().minimum(limit)
    columns, rows = (last - first + 1).where(usable[:, None], 0).clamp(min=0).long().unbind(-1)
    return first, columns, rows


def _chunks(pairs: Tensor) -> Sequence[Tensor]:
    """Split the triangles that have pairs, in order, into chunks of about ``MAX_PAIRS`` pairs."""
    visible = pairs.nonzero()[:, 0]
    part = _divmod(pairs[visible].cumsum(0) - 1, MAX_PAIRS)[0]
    return visible.split(part.unique_consecutive(return_counts=True)[1].tolist())


def _pairs(
    chunk: Tensor, first: Tensor, columns: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """List triangle, u and v of each pixel in the boxes of triangles, each (P,)."""
    columns = columns[chunk]
    counts = columns * rows[chunk]
    index = torch.repeat_interleave(counts)
    place = torch.arange(len(index), device=index.device)
    place = place - (counts.cumsum(0) - counts).index_select(0, index)
    row, column = _divmod(place, columns.index_select(0, index))
    triangle = chunk.index_select(0, index)
    corner = first.index_select(0, triangle).long()
    return triangle, corner[:, 0] + column, corner[:, 1] + row


def _cover(corners: Corners, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Test pixels u, v (P,) against triangles (P, 3); returns coverage and depth, each (P,)."""
    a, b, c = corners
    areas, total = _areas(corners, torch.stack([u, v], -1).to(a.dtype))
    # The distance from an edge is twice the area of its part over the length of the edge.
    edges = torch.stack([c - b, a - c, b - a], -2)[..., :2].norm(dim=-1)
    outside = areas * total.sign()[:, None] < -EDGE_TOLERANCE * edges
    inside = ~outside.any(-1) & (total.abs() >= MIN_AREA)
    return inside, _perspective(areas, total, torch.stack([a[:, 2], b[:, 2], c[:, 2]], -1))[1]


def _divmod(value: Tensor, by: Tensor | int) -> tuple[Tensor, Tensor]:
    quotient = torch.div(value, by, rounding_mode="floor")
    return quotient, value - quotient * by


def _search_pytorch3d(projected: Tensor, triangles: Tensor, size: tuple[int, int]) -> Tensor:
    """Search with PyTorch3D.

    PyTorch3D covers only strictly inside a triangle. A shift of a little more than rounding avoids
    holes at vertices on pixel centers. The first row and column of an unrotated depth map may
    still be empty.
    """
    from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
    from pytorch3d.structures import Meshes

    if size[0] != size[1]:
        raise ValueError(f"renderer='pytorch3d' renders square images only, got {size}")
    nudge = projected.new_tensor([2.3e-4, 1.7e-4])
    # PyTorch3D: x left, y up, and [-1, 1] spans the outer borders of the pixels.
    position = 1 - (projected[..., :2] + nudge + 0.5) * (2 / size[0])
    vertices = torch.cat([position, projected[..., 2:]], -1)
    meshes = Meshes(list(vertices), [triangles] * len(vertices))
    packed = rasterize_meshes(
        meshes, image_size=size[0], blur_radius=0.0, faces_per_pixel=1, perspective_correct=True
    )[0][..., 0]
    return (packed % max(len(triangles), 1)).where(packed >= 0, -1)


# --- interpolation --------------------------------------------------------------------------------


def _fragments(projected: Tensor, triangles: Tensor, triangle: Tensor) -> Fragments:
    covered = triangle >= 0
    indices = (
        triangles[triangle.clamp(min=0)]
        if len(triangles)
        else triangle.new_zeros(*triangle.shape, 3)
    )
    indices = indices.where(covered[..., None], 0)
    # Background pixels get a dummy triangle, so that their gradients are not NaN.
    dummy = projected.new_tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    corners = _gather(projected, indices).where(covered[..., None, None], dummy)
    a, b, c = corners.unbind(-2)
    height, width = triangle.shape[1:]
    u = torch.arange(width, device=projected.device, dtype=projected.dtype)
    v = torch.arange(height, device=projected.device, dtype=projected.dtype)
    pixel = torch.stack(torch.meshgrid(u, v, indexing="xy"), -1).expand(*triangle.shape, 2)
    areas, total = _areas((a, b, c), pixel)
    weights, depth = _perspective(areas, total, corners[..., 2])
    return Fragments(
        triangle, indices, weights.where(covered[..., None], 0), depth.where(covered, 0)
    )


def _areas(corners: Corners, pixel: Tensor) -> tuple[Tensor, Tensor]:
    """Compute twice the signed areas of the parts (..., 3) and of the whole (...) of triangles.

    Areas are relative to the pixel, so the two sides of a shared edge differ only in sign, and no
    pixel falls between them.
    """
    (ax, ay), (bx, by), (cx, cy) = ((corner[..., :2] - pixel).unbind(-1) for corner in corners)
    parts = bx * cy - cx * by, cx * ay - ax * cy, ax * by - bx * ay
    return torch.stack(parts, -1), parts[0] + parts[1] + parts[2]


def _perspective(areas: Tensor, total: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Compute perspective-correct weights of the corners (..., 3), and the depth (...)."""
    flat = (areas / total.where(total != 0, 1)[..., None]).clamp(min=0)
    flat = flat / flat.sum(-1, keepdim=True).clamp(min=EDGE_TOLERANCE)
    weights = flat / z
    inverse = weights.sum(-1)
    return weights / inverse[..., None], 1 / inverse


def _gather(values: Tensor, index: Tensor) -> Tensor:
    """Gather rows of ``values`` (B, N, C) at ``index`` (B, ...), (B, ..., C)."""
    batch, rows, width = values.shape
    offset = torch.arange(batch, device=values.device).view(-1, *[1] * (index.ndim - 1)) * rows
    flat = values.reshape(batch * rows, width).index_select(0, (index + offset).flatten())
    return flat.view(*index.shape, width)
