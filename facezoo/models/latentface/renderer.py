"""From the outputs of LatentFace's networks to an image: R of eq. (1) and (2).

Source: LatentFace, Sec. 5.4, with the ranges of Unsup3D (Wu et al., CVPR 2020). Canonical depth map
→ mesh, lit in the canonical pose, posed by the view, rasterised. Unsup3D reads the canonical image
back through the drawn depth instead; the two agree up to interpolation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from facezoo.results import Result
from facezoo.geometry.camera import Camera, grid_triangles, to_view
from facezoo.geometry.rasterize import Renderer, interpolate, rasterize
from facezoo.geometry.shading import Light, grid_normals, shade, shading

MIN_DEPTH, MAX_DEPTH = 0.9, 1.1
BORDER = 2
"""Columns at the left, and as many at the right, whose depth is fixed."""
BORDER_DEPTH = 0.7 * MAX_DEPTH + 0.3 * MIN_DEPTH
"""Their depth, which keeps the mesh closed."""
MAX_TURN = torch.pi / 3
"""Largest rotation about each axis, radians."""
MAX_SHIFT = (0.1, 0.1, 0.0)
"""Largest movement along x, y and z; Unsup3D's faces do not move in depth."""


@dataclass(frozen=True, repr=False)
class Rendering(Result):
    """B drawn faces."""

    image: Tensor
    """Colours where -1 is black and 1 white, 0 beside the face; may pass 1, (B, 3, S, S)."""
    mask: Tensor
    """Ω of eq. (7): whether a pixel shows the face, bool, (B, 1, S, S)."""
    depth: Tensor
    """z in the view, 0 beside the face, (B, S, S)."""


@dataclass(frozen=True)
class FaceRenderer:
    """Draws faces of a given size.

    It has no weights, and works on the device of what it is given.
    """

    size: int
    """S, pixels; of the maps and of the images."""
    renderer: Renderer = "auto"
    """See ``facezoo.geometry.rasterize.rasterize``."""

    @property
    def camera(self) -> Camera:
        """The camera of canonical and posed faces."""
        return Camera(self.size)

    def render(self, depth: Tensor, albedo: Tensor, light: Light, view: Tensor) -> Rendering:
        """Draw faces, with gradients to everything that is given, in full precision at any time.

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
            colours = shade(albedo, shading(grid_normals(points), light))
            posed = to_view(rearrange(points, "b h w c -> b (h w) c"), view)
            fragments = rasterize(
                self.camera.project(posed),
                grid_triangles(self.size, self.size, depth.device),
                (self.size, self.size),
                self.renderer,
            )
            image = interpolate(fragments, rearrange(colours, "b c h w -> b (h w) c"))
        return Rendering(
            rearrange(image, "b h w c -> b c h w"), fragments.mask[:, None], fragments.depth
        )

    def normals(self, depth: Tensor) -> Tensor:
        """Normals of canonical depth maps (B, S, S), away from the camera, (B, S, S, 3)."""
        return grid_normals(self.camera.unproject(depth))


def depth_from_output(output: Tensor) -> Tensor:
    """The canonical depth map of the shape decoder's output.

    Its mean is taken off, then it is squeezed into [0.9, 1.1]; the border columns are fixed.

    Args:
        output: (B, 1, S, S).

    Returns:
        (B, S, S).
    """
    output = output[:, 0]
    relative = (output - output.mean((1, 2), keepdim=True)).tanh()
    depth = MIN_DEPTH + (relative + 1) / 2 * (MAX_DEPTH - MIN_DEPTH)
    border = torch.zeros(depth.shape[-1], dtype=torch.bool, device=depth.device)
    border[:BORDER] = border[-BORDER:] = True
    return depth.masked_fill(border, BORDER_DEPTH)


def view_from_output(output: Tensor) -> Tensor:
    """The view of the view encoder's numbers.

    Args:
        output: in [-1, 1], (B, 6).

    Returns:
        rx, ry, rz in radians, tx, ty, tz, (B, 6).
    """
    return output * output.new_tensor([MAX_TURN] * 3 + list(MAX_SHIFT))
