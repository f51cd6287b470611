"""What LatentFace says about faces."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from facezoo.display import Short
from facezoo.results import FaceEncoding, as_rows

NUMBERS = (4, 6)
"""How many numbers are a light and a view."""


@dataclass(frozen=True, repr=False)
class Latents(Short):
    """What the four encoders of the first stage say about B faces."""

    texture: Tensor
    """Z_t, 0 or more, (B, D)."""
    shape: Tensor
    """Z_s, 0 or more, (B, D)."""
    light: Tensor
    """Z_l: ambient, diffuse, dx, dy in [-1, 1], see ``Light.from_parameters``, (B, 4)."""
    view: Tensor
    """Z_p: rx, ry, rz in radians, tx, ty, tz, see ``facezoo.geometry.camera``, (B, 6)."""

    def __len__(self) -> int:
        return len(self.texture)

    def __getitem__(self, index: Any) -> Latents:
        """Select faces by a number, a slice, a boolean mask or an index tensor."""
        rows = as_rows(index, len(self))
        return Latents(*(getattr(self, field.name)[rows] for field in fields(self)))

    def to(self, dtype: torch.dtype) -> Latents:
        """The same in another precision."""
        return Latents(*(getattr(self, field.name).to(dtype) for field in fields(self)))

    def packed(self) -> Tensor:
        """All of it in one row per face, (B, 2 D + 10)."""
        return torch.cat([self.texture, self.shape, self.light, self.view], -1)

    @classmethod
    def unpacked(cls, rows: Tensor) -> Latents:
        """The inverse of ``packed``."""
        width = (rows.shape[-1] - sum(NUMBERS)) // 2
        return cls(*rows.split([width, width, *NUMBERS], -1))


@dataclass(frozen=True, repr=False)
class LatentFaceEncoding(FaceEncoding):
    """A ``FaceEncoding`` with what stands behind it; ``pose`` is the view."""

    texture: Tensor | None = None
    """Z_t, (F, D)."""
    shape: Tensor | None = None
    """Z_s, (F, D)."""
    light: Tensor | None = None
    """Z_l, see ``Latents``, (F, 4)."""
    view: Tensor | None = None
    """Z_p, see ``Latents``, (F, 6)."""
