"""Textured meshes, written as .obj or .ply.

Axes of the files: x to the right, y **up**, z towards the viewer, with triangles counter-clockwise
as seen from outside. Most programs use these axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from facezoo.results import Result

SUFFIXES = (".obj", ".ply")


@dataclass(frozen=True, repr=False)
class TexturedMesh(Result):
    """A mesh, a texture image, and the pixel of each vertex in it."""

    vertices: Tensor
    """x, y, z in the axes of the files, (N, 3)."""
    triangles: Tensor
    """Vertex indices, int64, (F, 3)."""
    pixels: Tensor
    """Column and row of each vertex in the texture, centers at whole numbers, (N, 2)."""
    texture: Tensor
    """RGB in [0, 1], (3, H, W)."""

    def save(self, path: str | Path) -> Path:
        """Write ``.obj`` with a material and a texture, or ``.ply`` with colored vertices.

        ``face.obj`` comes with ``face.mtl`` and ``face_texture.png``; an image ``face.png`` is not
        touched.

        Args:
            path: its suffix selects the format; its folder is created.

        Returns:
            The path.

        Raises:
            ValueError: if the suffix is unknown.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:
            raise ValueError(f"cannot save as {path.name!r}; expected {' or '.join(SUFFIXES)}")
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".ply":
            path.write_text(self._ply(), encoding="ascii")
            return path
        material, image = path.with_suffix(".mtl"), path.with_name(f"{path.stem}_texture.png")
        texture = (self.texture.clamp(0, 1) * 255).round().to(torch.uint8)
        Image.fromarray(texture.permute(1, 2, 0).numpy()).save(image)
        material.write_text(f"newmtl face\nKd 1 1 1\nmap_Kd {image.name}\n", encoding="utf-8")
        path.write_text(self._obj(material.name), encoding="utf-8")
        return path

    @property
    def colors(self) -> Tensor:
        """RGB in [0, 1] at the nearest pixel of each vertex, (N, 3)."""
        column, row = self.pixels.round().long().unbind(-1)
        return self.texture[:, row, column].T

    def _obj(self, material: str) -> str:
        height, width = self.texture.shape[1:]
        uv = (self.pixels + 0.5) / self.pixels.new_tensor([width, height])
        lines = [f"mtllib {material}", "usemtl face"]
        lines += [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in self.vertices.tolist()]
        lines += [f"vt {u:.6f} {1 - v:.6f}" for u, v in uv.tolist()]
        corners = (self.triangles + 1).tolist()
        lines += ["f " + " ".join(f"{i}/{i}" for i in corner) for corner in corners]
        return "\n".join(lines) + "\n"

    def _ply(self) -> str:
        colors = (self.colors.clamp(0, 1) * 255).round().long().tolist()
        lines = [
            "ply",
            "format ascii 1.0",
            f"element vertex {len(self.vertices)}",
            *(f"property float {axis}" for axis in "xyz"),
            *(f"property uchar {color}" for color in ("red", "green", "blue")),
            f"element face {len(self.triangles)}",
            "property list uchar int vertex_indices",
            "end_header",
        ]
        for (x, y, z), color in zip(self.vertices.tolist(), colors, strict=True):
            lines.append(f"{x:.6f} {y:.6f} {z:.6f} {' '.join(map(str, color))}")
        lines += [f"3 {' '.join(map(str, corner))}" for corner in self.triangles.tolist()]
        return "\n".join(lines) + "\n"
