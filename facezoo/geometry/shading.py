"""Normals of depth maps and diffuse shading.

Axes as in ``facezoo.geometry.camera``. Normals point **away** from the camera, as in Unsup3D, so a
plane that faces the camera has the normal (0, 0, 1). The direction of a light is its direction of
travel: positive x brightens slopes whose depth falls towards +x.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Added to the length before division. The cross products of a 64 x 64 grid are only 3e-5 to 1e-4
# long, so normals are up to 0.3 % short. The published weights were trained with this.
EPSILON = 1e-7


@dataclass(frozen=True)
class Light:
    """Ambient light and one directional light per image, B images."""

    ambient: Tensor
    """Intensity, (B,)."""
    diffuse: Tensor
    """Intensity of the directional light, (B,)."""
    direction: Tensor
    """Direction of travel, unit length, (B, 3)."""

    @classmethod
    def from_parameters(cls, parameters: Tensor) -> Light:
        """Convert the four light parameters of Unsup3D.

        Args:
            parameters: ambient, diffuse, dx, dy, each in [-1, 1], (B, 4). Intensities are mapped to
                [0, 1]; the direction is (dx, dy, 1).

        Returns:
            The light.

        Raises:
            ValueError: if ``parameters`` has another shape.
        """
        if parameters.ndim != 2 or parameters.shape[1] != 4:
            raise ValueError(
                f"light must be (B, 4), ambient, diffuse, dx, dy, got {tuple(parameters.shape)}"
            )
        ambient, diffuse = ((1 + parameters[:, :2]) / 2).unbind(-1)
        direction = torch.cat([parameters[:, 2:], torch.ones_like(parameters[:, :1])], -1)
        return cls(ambient, diffuse, F.normalize(direction, dim=-1))


def grid_normals(points: Tensor) -> Tensor:
    """Compute normals of a point grid: cross products of central differences.

    Args:
        points: from ``Camera.unproject``, (B, H, W, 3).

    Returns:
        Nearly unit length (see ``EPSILON``), (B, H, W, 3); (0, 0, 1) on the outermost ring.
    """
    across = points[:, 1:-1, 2:] - points[:, 1:-1, :-2]
    down = points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
    cross = torch.linalg.cross(across, down)
    inside = cross / (cross.norm(dim=-1, keepdim=True) + EPSILON)
    normals = torch.zeros_like(points)
    normals[..., 2] = 1
    normals[:, 1:-1, 1:-1] = inside
    return normals


def shading(normals: Tensor, light: Light) -> Tensor:
    """Compute the brightness of a matte surface: ambient + diffuse max(0, n · l).

    Source: LatentFace, Sec. 5.4, without specular reflection.

    Args:
        normals: (B, H, W, 3).
        light: lights of B images.

    Returns:
        0 or more, (B, H, W).
    """
    facing = torch.einsum("b h w c, b c -> b h w", normals, light.direction).clamp(min=0)
    return light.ambient[:, None, None] + light.diffuse[:, None, None] * facing


def shade(albedo: Tensor, brightness: Tensor) -> Tensor:
    """Compute the colors of a lit surface.

    Args:
        albedo: in [-1, 1], (B, 3, H, W).
        brightness: from ``shading``, (B, H, W).

    Returns:
        Colors, -1 black and 1 white, (B, 3, H, W); bright light exceeds 1.
    """
    return (albedo / 2 + 0.5) * brightness[:, None] * 2 - 1
