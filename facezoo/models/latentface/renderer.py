"""Renderer from LatentFace's outputs to an image: R of eq. (1) and (2).

Source: LatentFace, Sec. 5.4, with the ranges of Unsup3D (Wu et al., CVPR 2020). The canonical depth
map becomes a mesh, which is lit in the canonical pose, moved by the view and rasterized. Unsup3D
samples the canonical image through the rendered depth instead; both agree up to interpolation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from facezoo.geometry.camera import Camera, grid_triangles, to_view
from facezoo.geometry.rasterize import Renderer, interpolate, rasterize
from facezoo.geometry.shading import Light, grid_normals, shade, shading
from facezoo.results import Result

MIN_DEPTH, MAX_DEPTH = 0.9, 1.1
BORDER = 2
"""Number of columns on each side whose depth is fixed."""
BORDER_DEPTH = 0.7 * MAX_DEPTH + 0.3 * MIN_DEPTH
"""Depth of these columns."""
MAX_TURN = torch.pi / 3
"""Largest rotation about each axis, radians."""
MAX_SHIFT = (0.1, 0.1, 0.0)
"""Largest movement along x, y and z; Unsup3D's faces do not move in depth."""


@dataclass(frozen=True, repr=False, eq=False)
class Rendering(Result):
    """B rendered faces."""

    image: Tensor
    """RGB from -1 (black) to 1 (white), 0 outside the face; may exceed 1, (B, 3, S, S)."""
    mask: Tensor
    """Ω of eq. (7), True where a pixel shows the face, (B, 1, S, S)."""
    depth: Tensor
    """Depth z in camera coordinates, 0 outside the face, (B, S, S)."""


@dataclass(frozen=True)
class FaceRenderer:
    """Renderer of faces of one size; it has no weights and runs on the device of its inputs."""

    size: int
    """Side S of maps and images, pixels."""
    renderer: Renderer = "auto"
    """See ``facezoo.geometry.rasterize.rasterize``."""

    @property
    def camera(self) -> Camera:
        """Return the camera of canonical and posed faces."""
        return Camera(self.size)

    def render(self, depth: Tensor, albedo: Tensor, light: Light, view: Tensor) -> Rendering:
        """Render faces in float32, also under autocast; gradients reach every input.

        Args:
            depth: canonical, (B, S, S).
            albedo: in [-1, 1], (B, 3, S, S).
            light: of B images.
            view: rx, ry, rz in radians, tx, ty, tz, (B, 6).

        Returns:
            Image, mask and depth.
        """
        with torch.autocast(depth.device.type, enabled=False):
            points = self.camera.unproject(depth)
            colors = shade(albedo, shading(grid_normals(points), light))
            posed = to_view(rearrange(points, "b h w c -> b (h w) c"), view)
            fragments = rasterize(
                self.camera.project(posed),
                grid_triangles(self.size, self.size, depth.device),
                (self.size, self.size),
                self.renderer,
            )
            image = interpolate(fragments, rearrange(colors, "b c h w -> b (h w) c"))
        return Rendering(
            rearrange(image, "b h w c -> b c h w"), fragments.mask[:, None], fragments.depth
        )

    def normals(self, depth: Tensor) -> Tensor:
        """Compute normals (B, S, S, 3) of depth maps (B, S, S); they point away from the camera."""
        return grid_normals(self.camera.unproject(depth))


def depth_from_output(output: Tensor) -> Tensor:
    """Convert the shape decoder's output, (B, 1, S, S), to a canonical depth map, (B, S, S).

    The output is centered and squashed into [0.9, 1.1]; the border columns have a fixed depth.
    """
    output = output[:, 0]
    relative = (output - output.mean((1, 2), keepdim=True)).tanh()
    depth = MIN_DEPTH + (relative + 1) / 2 * (MAX_DEPTH - MIN_DEPTH)
    border = torch.zeros(depth.shape[-1], dtype=torch.bool, device=depth.device)
    border[:BORDER] = border[-BORDER:] = True
    return depth.masked_fill(border, BORDER_DEPTH)


def view_from_output(output: Tensor) -> Tensor:
    """Scale the view encoder's output to rx, ry, rz in radians and tx, ty, tz, (B, 6)."""
    return output * output.new_tensor([MAX_TURN] * 3 + list(MAX_SHIFT))
