"""Codes of faces: texture, shape, light and view."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from facezoo.results import FaceEncoding, Result, as_rows


@dataclass(frozen=True, repr=False, eq=False)
class Latents(Result):
    """Outputs of the four encoders of the first stage for B faces."""

    texture: Tensor
    """Z_t, 0 or more, (B, D)."""
    shape: Tensor
    """Z_s, 0 or more, (B, D)."""
    light: Tensor
    """Z_l: ambient, diffuse, dx, dy in [-1, 1], see ``Light.from_parameters``, (B, 4)."""
    view: Tensor
    """Z_p: rx, ry, rz in radians, tx, ty, tz, see ``facezoo.geometry.camera``, (B, 6)."""

    @property
    def codes(self) -> Tensor:
        """Z_t, then Z_s, (B, 2 D)."""
        return torch.cat([self.texture, self.shape], -1)

    def __len__(self) -> int:
        return len(self.texture)

    def __getitem__(self, index: Any) -> Latents:
        """Select faces by a number, a slice, a boolean mask or an index tensor."""
        rows = as_rows(index, len(self))
        return Latents(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True, repr=False, eq=False)
class LatentFaceEncoding(FaceEncoding):
    """A ``FaceEncoding`` with the codes that it is computed from; ``pose`` is the view."""

    texture: Tensor | None = None
    """Z_t, (F, D)."""
    shape: Tensor | None = None
    """Z_s, (F, D)."""
    light: Tensor | None = None
    """Z_l, see ``Latents``, (F, 4)."""
    view: Tensor | None = None
    """Z_p, see ``Latents``, (F, 6)."""
