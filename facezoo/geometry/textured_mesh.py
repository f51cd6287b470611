"""Meshes with a texture, as files that other programs open.

Axes of the files: x to the right, y **up**, z towards the viewer, as most programs have it, with
the triangles counter-clockwise as seen from outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from facezoo.results import Result

SUFFIXES = (".obj", ".ply")


@dataclass(frozen=True, repr=False)
class TexturedMesh(Result):
    """A mesh, a picture, and where in the picture each vertex is."""

    vertices: Tensor
    """x, y, z in the axes of the files, (N, 3)."""
    triangles: Tensor
    """Indices of vertices, int64, (F, 3)."""
    places: Tensor
    """Column and row of each vertex in the texture, pixels, centres at whole numbers, (N, 2)."""
    texture: Tensor
    """RGB in [0, 1], (3, H, W)."""

    def save(self, path: str | Path) -> Path:
        """Write ``.obj`` with material and texture beside it, or ``.ply`` with coloured vertices.

        Beside ``face.obj`` stand ``face.mtl`` and ``face_texture.png``; a photograph ``face.png``
        is left alone.

        Args:
            path: whose suffix tells the format; its folder is made if need be.

        Returns:
            The path.

        Raises:
            ValueError: if the suffix is another.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:
            raise ValueError(f"a mesh is saved as {' or '.join(SUFFIXES)}, got {path.name!r}")
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".ply":
            path.write_text(self._ply(), encoding="ascii")
            return path
        material, picture = path.with_suffix(".mtl"), path.with_name(f"{path.stem}_texture.png")
        Image.fromarray(self._pixels()).save(picture)
        material.write_text(f"newmtl face\nKd 1 1 1\nmap_Kd {picture.name}\n", encoding="utf-8")
        path.write_text(self._obj(material.name), encoding="utf-8")
        return path

    @property
    def colours(self) -> Tensor:
        """RGB in [0, 1] of each vertex, read at the nearest pixel, (N, 3)."""
        column, row = self.places.round().long().unbind(-1)
        return self.texture[:, row, column].T

    def _pixels(self) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        pixels = (self.texture.clamp(0, 1) * 255).round().to(torch.uint8)
        array: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = pixels.permute(1, 2, 0).numpy()
        return array

    def _obj(self, material: str) -> str:
        height, width = self.texture.shape[1:]
        size = self.places.new_tensor([width, height])
        places = (self.places + 0.5) / size
        lines = [f"mtllib {material}", "usemtl face"]
        lines += [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in self.vertices.tolist()]
        lines += [f"vt {u:.6f} {1 - v:.6f}" for u, v in places.tolist()]
        corners = (self.triangles + 1).tolist()
        lines += ["f " + " ".join(f"{i}/{i}" for i in corner) for corner in corners]
        return "\n".join(lines) + "\n"

    def _ply(self) -> str:
        colours = (self.colours.clamp(0, 1) * 255).round().long().tolist()
        lines = [
            "ply",
            "format ascii 1.0",
            f"element vertex {len(self.vertices)}",
            *(f"property float {axis}" for axis in "xyz"),
            *(f"property uchar {colour}" for colour in ("red", "green", "blue")),
            f"element face {len(self.triangles)}",
            "property list uchar int vertex_indices",
            "end_header",
        ]
        for (x, y, z), colour in zip(self.vertices.tolist(), colours, strict=True):
            lines.append(f"{x:.6f} {y:.6f} {z:.6f} {' '.join(map(str, colour))}")
        lines += [f"3 {' '.join(map(str, corner))}" for corner in self.triangles.tolist()]
        return "\n".join(lines) + "\n"
