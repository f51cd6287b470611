"""A small single-shot face detector with five landmarks, of our own design.

A trunk of plain and depthwise separable convolutions, a top-down path, and a head per level. One
pass covers faces from 16 pixels to the whole image; a level covers faces of an octave or two. Every
cell of a level predicts the score, box and landmarks of a face near it. The levels follow FCOS
(Tian et al., ICCV 2019), the landmarks RetinaFace (Deng et al., CVPR 2020), and the light head
YuNet (Wu et al., 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

DETECTOR = "face-detector"
"""Name of the family in ``hub.card``."""
STRIDES = (8, 16, 32, 64)
BASES = (40.0, 80.0, 160.0, 320.0)
"""Typical side of a level's faces in pixels; the head's outputs are in this unit."""


def _conv(
    inputs: int,
    outputs: int,
    stride: int = 1,
    groups: int = 1,
    kernel: int = 3,
    relu: bool = True,
) -> nn.Sequential:
    """Build a convolution, its batch norm until that is folded, and a ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        *([nn.ReLU(inplace=True)] if relu else []),
    )


class _Separable(nn.Module):
    """A residual depthwise separable convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(width, width, groups=width, relu=False), _conv(width, width, kernel=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class _Head(nn.Module):
    """Score, box and landmarks of the cells of one level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tower = nn.Sequential(_Separable(width), _Separable(width))
        self.output = nn.Linear(width, 1 + 4 + 10)
        nn.init.normal_(self.output.weight, std=0.01)
        # Most cells hold no face.
        self.output.bias = nn.Parameter(torch.tensor([-4.0] + 14 * [0.0]))

    def forward(self, features: Tensor) -> Tensor:
        """Compute the numbers of every cell, (B, A, 15), in float32 as they become pixels."""
        x = self.tower(features).permute(0, 2, 3, 1).flatten(1, 2)
        with torch.autocast(x.device.type, enabled=False):
            numbers: Tensor = self.output(x.to(self.output.weight.dtype))
        return numbers.float()


@dataclass(frozen=True)
class Candidates:
    """Outputs of the A cells of all levels."""

    logits: Tensor
    """How likely the cell's box is a face and fits it, before the sigmoid, (B, A)."""
    boxes: Tensor
    """x0, y0, x1, y1 in pixels of the input, (B, A, 4)."""
    landmarks: Tensor
    """Five points in pixels of the input, (B, A, 5, 2)."""


class FaceDetector(nn.Module):
    """Faces from 16 pixels to the whole image in a batch of equally large images.

    Args:
        width: channels of the finest level and of the heads.
    """

    multiple: ClassVar[int] = STRIDES[-1]
    """Sides of the images are multiples of this, pixels."""
    smallest_face: ClassVar[float] = 16.0
    """Least length of the longer side of a face, pixels."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        stem, coarse = width * 2 // 3, width * 2
        self.stem = nn.Sequential(_conv(3, stem // 2, 2), _conv(stem // 2, stem, 2))
        self.stages = nn.ModuleList(
            [
                nn.Sequential(_conv(stem, width, 2), _Separable(width), _Separable(width)),
                nn.Sequential(_conv(width, coarse, 2), _conv(coarse, coarse), _Separable(coarse)),
                nn.Sequential(_conv(coarse, coarse, 2), _Separable(coarse), _Separable(coarse)),
                nn.Sequential(_conv(coarse, coarse, 2), _Separable(coarse), _Separable(coarse)),
            ]
        )
        self.laterals = nn.ModuleList(
            _conv(inputs, width, kernel=1) for inputs in (width, coarse, coarse, coarse)
        )
        self.heads = nn.ModuleList(_Head(width) for _ in STRIDES)

    def forward(self, images: Tensor) -> Candidates:
        """Compute the outputs of every cell.

        Args:
            images: RGB in [-1, 1], sides multiples of 64, (B, 3, H, W).

        Returns:
            Candidates in pixels of the input.

        Raises:
            ValueError: if a side is not a multiple of 64.
        """
        height, width = images.shape[-2:]
        if height % self.multiple or width % self.multiple:
            raise ValueError(
                f"images must have sides that are multiples of {self.multiple}, got "
                f"{height} x {width}; pad them with zeros on the right and below"
            )
        return decode(self.raw(images), *cells(height, width, images.device))

    def raw(self, images: Tensor) -> Tensor:
        """Compute the numbers that ``decode`` takes, (B, A, 15), from images (B, 3, H, W)."""
        features = []
        x = self.stem(images)
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        outputs: list[Tensor] = []
        merged = self.laterals[-1](features[-1])
        for level in reversed(range(len(STRIDES))):
            if outputs:
                above = F.interpolate(merged, scale_factor=2.0, mode="nearest")
                merged = self.laterals[level](features[level]) + above
            outputs.append(self.heads[level](merged))
        return torch.cat(outputs[::-1], 1)

    @torch.no_grad()
    def fold_norms(self) -> FaceDetector:
        """Fold every batch norm into the convolution before it, in place; eval mode only after.

        Outputs change by rounding alone. The weights of the norms are gone.
        """
        for layer in list(self.modules()):
            if not isinstance(layer, nn.Sequential) or len(layer) < 2:
                continue
            convolution, norm = layer[0], layer[1]
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                layer[0] = fuse_conv_bn_eval(convolution.eval(), norm.eval())
                del layer[1]
        return self.eval()


def cells_of(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return center x, y (A, 2) and unit (A, 1) of every cell of an input of this size, pixels."""
    centers, bases = [], []
    for stride, base in zip(STRIDES, BASES, strict=True):
        y = torch.arange(height // stride, dtype=torch.float32, device=device)
        x = torch.arange(width // stride, dtype=torch.float32, device=device)
        y, x = y * stride + (stride - 1) / 2, x * stride + (stride - 1) / 2
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1).reshape(-1, 2)
        centers.append(grid)
        bases.append(torch.full_like(grid[:, :1], base))
    return torch.cat(centers), torch.cat(bases)


@lru_cache(maxsize=64)
def cells(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ``cells_of``, from a cache that does not depend on the state of the first caller."""
    with torch.inference_mode(False):
        return cells_of(height, width, device)


def decode(raw: Tensor, centers: Tensor, bases: Tensor) -> Candidates:
    """Convert the numbers of the network (B, A, 15) to boxes and landmarks in pixels."""
    middle = centers + raw[..., 1:3] * bases
    half = bases * raw[..., 3:5].clamp(-4, 4).exp() / 2
    points = centers[:, None] + raw[..., 5:].unflatten(-1, (5, 2)) * bases[:, None]
    return Candidates(raw[..., 0], torch.cat([middle - half, middle + half], -1), points)
